"""Published figures and claims."""
