"""Training of models without published weights."""
