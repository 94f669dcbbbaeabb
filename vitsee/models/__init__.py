"""Building, loading and reading vision models."""
