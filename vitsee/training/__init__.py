"""Training models that have no public weights."""
