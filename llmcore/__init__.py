"""Build a language model from scratch and account for every byte of it."""

__version__ = "0.3.0"
