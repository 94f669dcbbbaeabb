"""Training and fine-tuning of timm classifiers."""
