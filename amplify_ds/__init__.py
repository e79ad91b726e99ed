"""Pretraining of the AMPLIFY protein language model with DeepSpeed."""

__version__ = "0.1.0"
