"""Formulas: one function per equation, with no options and no files."""
