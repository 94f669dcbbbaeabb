"""vitsee: see how vision models represent images."""

__version__ = "0.1.0"
