"""The work on GGUF files: importance matrices, quantization, measurement."""

import minitron_engine.errors  # noqa: F401 - its package sets what must stand before numpy loads
