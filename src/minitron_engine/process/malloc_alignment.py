"""Where llama.cpp's work memory on the processor begins: on a cache line.

Reason: ggml-cpu takes it with new[] in a computation that needs more than those before it. glibc's
malloc may put it at any multiple of 16, and a large block always 16 bytes past a page; then vectors
straddle cache lines. So malloc is led to give a multiple of 64 next. Where there is no compiled
library, or another C library, nothing happens.

Measured: with AVX-512 chunks of 512 tokens take 7 % less time, a prompt of 2,048 tokens 14 %
(benchmarks/results/work_memory.md), with the same bits.
"""

import ctypes
from ctypes import c_int32

from minitron_core.kernels import kernels


class WorkAlignment(ctypes.Structure):
    """WorkAlignment of kernels.h. wanted: 1 before a computation that may take work memory.

    past: bytes past the beginning of a cache line, a multiple of 16.
    """

    _fields_ = (("wanted", c_int32), ("past", c_int32))


def evaluation_callback() -> ctypes.c_void_p | None:
    """The callback for a context's nodes, which takes a WorkAlignment; it awaits none of them."""
    library = kernels().library
    if library is None:
        return None
    return ctypes.cast(library.kernels_align_work, ctypes.c_void_p)


def align(past: int = 0) -> None:
    """Let the next large block that this thread takes from malloc begin on a cache line.

    past: or so many bytes past the beginning of one, a multiple of 16.
    """
    library = kernels().library
    if library is not None:
        library.kernels_align_work(None, False, ctypes.byref(WorkAlignment(1, past)))
