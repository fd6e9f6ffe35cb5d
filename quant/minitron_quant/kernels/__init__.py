"""Encoders in place of ggml's: the same bytes, several times faster (docs/kernels.md)."""
