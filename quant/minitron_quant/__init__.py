"""The work on GGUF files: importance matrices, quantization, measurement."""

import minitron_engine  # noqa: F401 - sets what must be set before numpy loads
