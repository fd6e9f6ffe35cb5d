"""The `minitron` command."""

__version__ = "0.1.0"
