"""The drawing vocabulary: a table in, a matplotlib figure out."""
