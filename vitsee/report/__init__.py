"""The HTML page of all results."""
