"""The version of vitsee."""

__version__ = "0.1.0"
