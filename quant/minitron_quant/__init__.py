"""The work on GGUF files: importance matrices, quantization, measurement."""
