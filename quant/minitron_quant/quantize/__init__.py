"""Quantization: every level from one read of the source."""
