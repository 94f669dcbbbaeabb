"""Functions that draw a table as a matplotlib figure."""
