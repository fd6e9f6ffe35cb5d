"""GPTQ by the compiled library: the structures of kernels.h, and its calls.

Arrays are [columns or groups, rows]; a call computes the first `rows` of them, a multiple of LANES.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import numpy as np

from minitron_core.kernels import kernels
from minitron_quant.array_backend import Bytes, Floats, Ints

LANES = 16


class Strip(ctypes.Structure):
    """GptqStrip."""

    _fields_ = (
        *((name, c_int64) for name in ("rows", "stride", "columns", "size")),
        *((name, c_void_p) for name in ("weights", "targets", "upper", "unit", "groups")),
        *((name, c_void_p) for name in ("errors", "loss")),
    )


class Scale(ctypes.Structure):
    """GptqScale."""

    _fields_ = (
        *((name, c_int32) for name in ("whole", "low", "high", "sign")),
        *((name, c_void_p) for name in ("half", "value")),
    )


class Scalar(ctypes.Structure):
    """GptqScalar."""

    _fields_ = (
        *((name, c_int32) for name in ("group", "with_min", "low", "high", "code_of_zero")),
        ("levels", c_void_p),
        ("scale", Scale),
        ("min", Scale),
        ("codes", c_void_p),
    )


class Codebook(ctypes.Structure):
    """GptqCodebook."""

    _fields_ = (
        *((name, c_int32) for name in ("group", "dims", "words", "most_scale", "even", "shifted")),
        *((name, c_float) for name in ("unit", "shift")),
        *((name, c_void_p) for name in ("table", "d", "scale", "index", "bits")),
        ("scratch", c_void_p),
    )


def usable() -> bool:
    """Whether there is a library; numpy has to do it otherwise."""
    return kernels().library is not None


def choose(strip: Strip, coder: Scalar | Codebook) -> None:
    """Choose the codes of a strip."""
    loaded = kernels()
    assert loaded.library is not None
    scalar = isinstance(coder, Scalar)
    call = loaded.library.kernels_gptq_scalar if scalar else loaded.library.kernels_gptq_codebook
    call(loaded.level, ctypes.byref(strip), ctypes.byref(coder))


def with_scratch(coder: Codebook) -> Floats:
    """Give a coder the memory that it works in, which the caller keeps."""
    loaded = kernels()
    assert loaded.library is not None
    count = loaded.library.kernels_gptq_scratch(loaded.level, ctypes.byref(coder))
    scratch = np.empty(count, np.float32)
    coder.scratch = scratch.ctypes.data
    return scratch


def write_field(blocks: Bytes, parts: Ints, numbers: Ints) -> bool:
    """Write numbers [blocks, numbers] into blocks [blocks, bytes]; False where there is no library.

    parts: FieldPart, [parts, 6].
    """
    library = kernels().library
    if library is None or not blocks.flags.c_contiguous:
        return False
    given = numbers.astype("int32", order="C", copy=False)
    library.kernels_write_field(
        blocks.ctypes.data, *blocks.shape, parts.ctypes.data, len(parts),
        given.ctypes.data, given.shape[1],
    )  # fmt: skip
    return True
