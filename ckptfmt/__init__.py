"""Checkpoints of training runs: complete and verified, or an exact error."""

__version__ = "0.1.0"
