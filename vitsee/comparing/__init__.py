"""Compares any number of models from their kept Gram matrices: measures, nulls, tables, atlas. Imports no torch."""
