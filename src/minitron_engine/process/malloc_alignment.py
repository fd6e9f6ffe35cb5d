"""Where llama.cpp's work memory on the processor begins: on a cache line.

Reason: ggml-cpu takes it with new[] in a context's first computation. glibc's malloc may put it at
any multiple of 16; where that is not a multiple of 32, vectors straddle cache lines. So malloc is
led to give a multiple of 64 next. Where that fails, or with another C library, nothing happens.

Measured: a decode of the bundled model takes 6.5 % less time (305 ms instead of 326 ms, median of
60 pairs; benchmarks/results/work_memory.md), with the same bits.
"""

import ctypes
import os
from functools import cache
from typing import Any

# ggml_backend_sched_eval_callback of ggml-backend.h: (node, asked before it is computed, data)
_EvaluationCallback = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p
)
_LINE = 64
_LARGE = 31 << 20  # glibc maps pages of its own for every block of 32 MiB
_HEADER = 8  # what a block of malloc's takes beside its bytes


def aligning_hook(past: int = 0) -> Any:
    """A hook for `open_context` that aligns before the first computation and awaits no node.

    past: see `align`.
    """
    aligned = False

    def called(_address: int, _ask: bool, _data: object) -> bool:
        nonlocal aligned
        if not aligned:
            aligned = True
            align(past)
        return False

    return _EvaluationCallback(called)


def align(past: int = 0) -> None:
    """Let the next large block that this thread takes from malloc begin on a cache line.

    past: or so many bytes past the beginning of one, a multiple of 16.
    """
    allocator = _glibc()
    if allocator is None:
        return
    block = allocator.malloc(_LARGE)
    missing = (past - (block or 0)) % _LINE
    if block and missing:
        # a small block stays; the rest goes back to the end of the heap, which is there now
        allocator.realloc(block, missing + _LINE - _HEADER)
    else:
        allocator.free(block)


@cache
def _glibc() -> ctypes.CDLL | None:
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.malloc.argtypes, library.malloc.restype = [size], pointer
    library.realloc.argtypes, library.realloc.restype = [pointer, size], pointer
    library.free.argtypes, library.free.restype = [pointer], None
    # once such a block was freed, glibc takes blocks up to its size from the heap, without pages
    # of their own, in which they begin at 16 bytes
    library.free(library.malloc(_LARGE + _LINE))
    return library
