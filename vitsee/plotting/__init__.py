"""Functions that draw tables as matplotlib figures."""
