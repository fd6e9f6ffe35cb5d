"""Address space, reserved without being touched, so that a command can say that memory ran out.

Reason: under a limit (ulimit -v) numpy crashes or reports a bug of its own where it gets less than
it needs to be loaded, and Python cannot even load what prints an error once nothing is left. With
the reserve, a lack of memory is one sentence and exit code 6 at every limit from 60 MiB to 2 GiB
that was tried (benchmarks/results/hardening.md). It costs no memory: pages are never touched.
"""

import mmap

# what numpy and llama.cpp take to be loaded, and what printing an error takes
_LIBRARIES_BYTES = 136 << 20
_ERROR_BYTES = 24 << 20
_reserved: list[mmap.mmap] = []


def reserve() -> None:
    """Keep what printing an error takes. Raises OSError (ENOMEM) without room for the libraries."""
    _map(_LIBRARIES_BYTES).close()
    _reserved.append(_map(_ERROR_BYTES))


# Gives the reserve back, to print an error with it. No function of Python's: a thread that has no
# memory for a frame can call it.
release = _reserved.clear


def _map(size: int) -> mmap.mmap:
    private = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}
    return mmap.mmap(-1, size, **private)
