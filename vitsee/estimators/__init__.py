"""Estimators: one function per equation, without options or files."""
