"""llama.cpp's C API: the library, its log, devices, models and contexts."""
