"""Compares any number of models from stored Gram matrices: measures, nulls, tables, atlas. Does not import torch."""
