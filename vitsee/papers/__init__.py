"""Published figures and the claims they test."""
