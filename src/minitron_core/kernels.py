"""The compiled library of quant/kernels, where it is built and the processor can run it."""

import ctypes
import logging
import os
from ctypes import c_bool, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

LIBRARY = Path(__file__).with_name("libminitron_kernels.so")
SWITCH = "MINITRON_NATIVE"
AVX2, AVX512 = 1, 2
INSTRUCTIONS = {AVX2: "AVX2", AVX512: "AVX-512"}
_LOG = logging.getLogger("minitron.kernels")
_loading = Lock()


class Kernels(NamedTuple):
    """What was loaded. library: None where ggml's encoders do the work, for `reason`.

    level: the widest instruction set of this processor that has kernels, AVX2 or AVX512.
    """

    library: ctypes.CDLL | None
    level: int
    reason: str

    @property
    def instructions(self) -> str:
        """Name of the instruction set in use; empty where none is."""
        return INSTRUCTIONS.get(self.level, "")

    def __str__(self) -> str:
        return f"{self.instructions} kernels" if self.library else f"ggml's: {self.reason}"


def kernels() -> Kernels:
    """The library of this process, loaded once; MINITRON_NATIVE=0 turns it off."""
    with _loading:
        return _loaded()


@cache
def _loaded() -> Kernels:
    found = load(LIBRARY)
    _LOG.info("encoders: %s", found)
    return found


def load(path: Path) -> Kernels:
    """Load the library at `path` and ask it for the processor's instruction set."""
    if os.environ.get(SWITCH) == "0":
        return _without(f"{SWITCH}=0")
    if not path.exists():
        return _without("the kernels were not built when minitron was installed")
    try:
        library = ctypes.CDLL(str(path))
        _declare(library)
    except (OSError, AttributeError) as failure:
        return _without(f"{path.name} cannot be loaded: {failure}")
    level = library.kernels_level()
    if not level:
        return _without("this processor has no AVX2")
    return Kernels(library, level, "")


def _without(reason: str) -> Kernels:
    return Kernels(None, 0, reason)


def _declare(library: ctypes.CDLL) -> None:
    """Signatures of kernels.h."""
    library.kernels_level.restype, library.kernels_level.argtypes = c_int, []
    library.kernels_set_codebook.restype = c_int
    library.kernels_set_codebook.argtypes = [c_int, c_void_p, c_int, c_int]
    library.kernels_score.restype = c_int
    library.kernels_score.argtypes = [c_int, c_void_p, c_int64, c_int64, *[c_void_p] * 7]
    library.kernels_likeliest.restype = c_int64
    library.kernels_likeliest.argtypes = [c_int, c_void_p, c_void_p, c_int32, c_int64]
    library.kernels_align_work.restype = c_bool
    library.kernels_align_work.argtypes = [c_void_p, c_bool, c_void_p]
    for name in ("kernels_gptq_scalar", "kernels_gptq_codebook"):
        getattr(library, name).restype = c_int
        getattr(library, name).argtypes = [c_int, c_void_p, c_void_p]
    library.kernels_gptq_scratch.restype = c_int64
    library.kernels_gptq_scratch.argtypes = [c_int, c_void_p]
    library.kernels_write_field.restype = None
    library.kernels_write_field.argtypes = [
        *(c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64),
    ]
    library.kernels_encode.restype = c_int64
    library.kernels_encode.argtypes = [
        *(c_int, c_int, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p),
    ]
