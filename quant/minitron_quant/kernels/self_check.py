"""Proof at first use that a kernel, as compiled here, gives the bytes of the ggml installed here.

A fixed sample is encoded and compared: with ggml's encoder where that starts at once. For a type
with a codebook ggml first builds tables, up to 4 s long; there the sample's digest is compared
with a recorded one, provided that ggml is the recorded version and gives the recorded digests for
two other types (a build that fuses multiplications and additions does not), and, for the IQ1
types, that qsort keeps the order of equal weights, on which the codes of ties depend.
"""

import ctypes
import hashlib
from collections.abc import Callable
from functools import cache
from threading import Lock, Thread

import numpy as np
from numpy.typing import NDArray

from minitron_core import stop
from minitron_core.gguf import TYPE, TYPE_ID, row_bytes
from minitron_engine.llama.library import ggml, ggml_version
from minitron_quant.kernels.codebooks import has_codebook

Values = NDArray[np.float32]
Bytes = NDArray[np.uint8]
# encodes [rows, columns] with the importance of the columns, or without
Encode = Callable[[Values, Values | None], Bytes]

NEEDS_IMPORTANCE = frozenset({"iq1_s", "iq2_xxs", "iq2_xs"})  # ggml aborts without
RECORDED_VERSION = "0.25.3"
# of the sample's blocks with importance, and without where ggml encodes without
RECORDED: dict[str, tuple[str, ...]] = {
    "iq1_s": ("8b55084991a0baa9",),
    "iq1_m": ("65057ce1f2687930", "a242eaba025d3483"),
    "iq2_xxs": ("6055e452026d86e5",),
    "iq2_xs": ("4c222d3f1a2c6c78",),
    "iq2_s": ("9efda2db2348334f", "e234a535cb20dd52"),
    "iq3_xxs": ("9c6d29fd08e5f9c2", "9a81250a3636ff57"),
    "iq3_s": ("c03d9ff7ecb5b033", "bff0c44568ea77a9"),
    "iq4_nl": ("f5f6d1cc2cb78909",),
    "q5_K": ("0eeac4ed0019af75",),
}
_WITNESSES = ("iq4_nl", "q5_K")
_ROWS, _COLUMNS = 15, 768
# held while ggml builds the tables of a type, for which all its encoders wait
_building = Lock()
_built: set[int] = set()
_LOOK_SECONDS = 0.05


def passes(ggml_type: int, encode: Encode) -> bool:
    """Whether `encode` gives ggml's bytes for the sample, with and without importance."""
    values, importance = sample()
    name = TYPE[ggml_type].name
    cases = (importance,) if name in NEEDS_IMPORTANCE else (importance, None)
    ours = [encode(values, case) for case in cases]
    if has_codebook(ggml_type) and recordings_hold():
        if name.startswith("iq1") and not _qsort_is_stable():
            return False
        return tuple(map(digest, ours)) == RECORDED[name]
    theirs = [by_ggml(ggml_type, values, case) for case in cases]
    return all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


@cache
def sample() -> tuple[Values, Values]:
    """Rows of everything that matters, [15, 768], and an importance; integers make them exact."""
    number = np.arange(_ROWS * _COLUMNS, dtype=np.uint64) + np.uint64(1)
    mixed = number * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    parts = mixed.view(np.uint16).reshape(-1, 4).astype(np.int64)
    normal = (parts.sum(axis=1) - 2 * 65535).astype(np.float32).reshape(_ROWS, _COLUMNS) / 2**20
    pick = parts[:, 0].reshape(_ROWS, _COLUMNS)
    values = normal.copy()
    values[2:4] = (values[2:4].view(np.uint32) & 0xFFFF0000).view(np.float32)  # bf16: ties
    values[4][pick[4] < 650] *= 32  # outliers
    values[5] = np.ldexp(values[5], (pick[5] % 24).astype(np.int32) - 20)  # scales by weight
    values[6] = np.ldexp(values[6], np.repeat(pick[6, ::32] % 40, 32).astype(np.int32) - 30)
    values[7] = np.abs(values[7]) + np.float32(0.25)
    values[8] = np.round(values[8] * 32)  # few integers
    values[9, :384] = 0  # empty blocks of every size, zeros of both signs
    values[10] *= np.repeat(pick[10, ::16] % 3 > 0, 16)
    values[11] *= pick[11] % 3 > 1
    values[12] = np.ldexp(values[12], -20)
    values[13] = np.ldexp(values[13], 12)
    importance = ((pick[14] + 1) / np.float32(65536)).astype(np.float32)
    importance[256:512] = np.ldexp(importance[256:512], (pick[4, :256] % 60).astype(np.int32) - 40)
    importance[512:] *= pick[0, 512:] % 4 > 0
    importance[-64:] = 0
    return values, importance


def encode_by_ggml(
    ggml_type: int, values: Values, blocks: Bytes, importance: Values | None
) -> None:
    """Encode [rows, columns] into `blocks` by ggml; importance: [columns], or None.

    KeyboardInterrupt after a request to stop, while ggml builds tables.
    """
    _await_tables(ggml_type)
    rows, columns = values.shape
    pointer = None if importance is None else importance.ctypes.data
    ggml().ggml_quantize_chunk(
        ggml_type, values.ctypes.data, blocks.ctypes.data, 0, rows, columns, pointer
    )


def _await_tables(ggml_type: int) -> None:
    """Have ggml build a type's tables in a thread that a stop leaves behind, deaf as it is."""
    while True:
        while not _building.acquire(timeout=_LOOK_SECONDS):
            stop.check()
        if ggml_type in _built or not has_codebook(ggml_type):
            _building.release()
            return
        Thread(target=_build_tables, args=(ggml_type,), name="ggml tables", daemon=True).start()


def _build_tables(ggml_type: int) -> None:
    ggml().ggml_quantize_init(ggml_type)
    _built.add(ggml_type)
    _building.release()


def by_ggml(ggml_type: int, values: Values, importance: Values | None) -> Bytes:
    """The blocks of rows by ggml's encoder."""
    blocks = np.empty(len(values) * row_bytes(ggml_type, values.shape[1]), np.uint8)
    encode_by_ggml(ggml_type, values, blocks, importance)
    return blocks


def digest(blocks: Bytes) -> str:
    """What RECORDED has of blocks."""
    return hashlib.sha256(blocks.tobytes()).hexdigest()[:16]


@cache
def recordings_hold() -> bool:
    """Whether the installed ggml is the one whose digests are recorded, as far as it is cheap."""
    if ggml_version() != RECORDED_VERSION:
        return False
    values, importance = sample()
    return all(
        digest(by_ggml(TYPE_ID[name], values, importance)) == RECORDED[name][0]
        for name in _WITNESSES
    )


@cache
def _qsort_is_stable() -> bool:
    """Whether the C library's qsort keeps the order of equals, tried as ggml calls it."""
    pairs = np.arange(64, dtype=np.float32).reshape(32, 2)
    pairs[:, 0] = np.arange(32) % 3
    expected = pairs[np.argsort(pairs[:, 0], kind="stable")]
    compared = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_float)
    )
    by_value = compared(lambda a, b: (a[0] > b[0]) - (a[0] < b[0]))
    ctypes.CDLL(None).qsort(
        ctypes.c_void_p(pairs.ctypes.data), ctypes.c_size_t(32), ctypes.c_size_t(8), by_value
    )
    return bool(np.array_equal(pairs, expected))
