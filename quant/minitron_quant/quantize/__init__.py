"""Quantization: all levels from one read of the source."""
