"""The layout types: a code stands for 8 or 4 weights at once, of a table of codewords.

value = d · (2 · scale + 1) · unit · (±codeword, or codeword ± shift). Formulas:
dequantize_row_iq* of ggml-quants.c (llama.cpp 0c1e57098).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from minitron_core.gguf import TYPE, TYPE_ID
from minitron_quant.array_backend import Bytes, Floats
from minitron_quant.blocks import decode_blocks
from minitron_quant.gptq.bitfields import Field, Plane, read, spread, write

SHIFT = 0.125  # of the IQ1 types


@dataclass(frozen=True)
class CodebookLayout:
    """The layout of one type's blocks of 256 weights.

    vector: weights of a codeword. group: weights that share a scale. d: the f16 factor as bits.
    signs: eight weights' minus signs as bits, None where codewords have signs of their own; with
    `even` only seven are stored, and the number of minus signs is even. shifts: which codewords
    are shifted down instead of up, for groups of `shifted` weights.
    """

    vector: int
    group: int
    unit: float
    index: Field
    scales: Field
    scale_bits: int
    d: Field = (Plane(0, (0,), 16, word=2),)
    signs: Field | None = None
    even: bool = False
    shifts: Field | None = None
    shifted: int = 0


def _all(count: int) -> tuple[int, ...]:
    return tuple(range(count))


def _every(step: int, count: int) -> list[list[int]]:
    """Items k, k + step, k + 2·step, … for every k below `step`."""
    return [list(range(k, count, step)) for k in range(step)]


_SEVEN_SIGNS = [(tuple(items), 7 * k) for k, items in enumerate(_every(4, 32))]

CODEBOOKS: dict[str, CodebookLayout] = {
    "iq1_s": CodebookLayout(
        8, 32, 1,
        index=(
            Plane(2, _all(32), 8),
            *(Plane(34, tuple(v), 3, 3 * k, 8, word=2) for k, v in enumerate(_every(4, 32))),
        ),
        scales=(Plane(34, _all(8), 3, 12, word=2),), scale_bits=3,
        shifts=(Plane(34, _all(8), 1, 15, word=2),), shifted=32,
    ),
    "iq1_m": CodebookLayout(
        8, 16, 1,
        index=(
            Plane(0, _all(32), 8),
            *(Plane(32, tuple(v), 3, 4 * k, 8) for k, v in enumerate(_every(2, 32))),
        ),
        scales=tuple(
            Plane(48, tuple(v), 3, 3 * k, word=2) for k, v in enumerate(_every(4, 16))
        ),
        scale_bits=3,
        d=tuple(Plane(48 + 2 * k, (0,), 4, 12, 4 * k, word=2) for k in range(4)),
        shifts=tuple(Plane(32, tuple(v), 1, 3 + 4 * k) for k, v in enumerate(_every(2, 32))),
        shifted=8,
    ),
    "iq2_xxs": CodebookLayout(
        8, 32, 0.125,
        index=tuple(Plane(2 + k, tuple(v), 8, stride=8) for k, v in enumerate(_every(4, 32))),
        scales=(Plane(6, _all(8), 4, 28, word=4, stride=8),), scale_bits=4,
        signs=tuple(Plane(6, v, 7, shift, word=4, stride=8) for v, shift in _SEVEN_SIGNS),
        even=True,
    ),
    "iq2_xs": CodebookLayout(
        8, 16, 0.125,
        index=(Plane(2, _all(32), 9, word=2),),
        scales=spread(66, _every(2, 16), 4), scale_bits=4,
        signs=(Plane(2, _all(32), 7, 9, word=2),), even=True,
    ),
    "iq2_s": CodebookLayout(
        8, 16, 0.125,
        index=(Plane(2, _all(32), 8), *spread(66, _every(4, 32), 2, at=8)),
        scales=spread(74, _every(2, 16), 4), scale_bits=4,
        signs=(Plane(34, _all(32), 8),),
    ),
    "iq3_xxs": CodebookLayout(
        4, 32, 0.25,
        index=(Plane(2, _all(64), 8),),
        scales=(Plane(66, _all(8), 4, 28, word=4),), scale_bits=4,
        signs=tuple(Plane(66, v, 7, shift, word=4) for v, shift in _SEVEN_SIGNS), even=True,
    ),
    "iq3_s": CodebookLayout(
        4, 32, 1,
        index=(Plane(2, _all(64), 8), *spread(66, _every(8, 64), 1, at=8)),
        scales=spread(106, _every(2, 8), 4), scale_bits=4,
        signs=(Plane(74, _all(32), 8),),
    ),
}  # fmt: skip


def factors(d: Floats, scales: Floats, unit: float) -> Floats:
    """The factor of codewords: d · (2 · scale + 1) · unit."""
    product: Floats = d * (2 * scales + 1) * unit
    return product


def read_d(blocks: Bytes, layout: CodebookLayout) -> Floats:
    """The f16 factor of every block, [blocks, 1]."""
    return read(blocks, layout.d).astype("<u2").view("<f2").astype(np.float32)


@cache
def codewords(name: str) -> Floats:
    """The table of a type, [codewords, vector], as the library decodes it."""
    layout, ggml_type = CODEBOOKS[name], TYPE[TYPE_ID[name]]
    count = 1 << max(plane.at + plane.bits for plane in layout.index)
    numbers = np.arange(count, dtype=np.int32).reshape(-1, 256 // layout.vector)
    blocks = np.zeros((len(numbers), ggml_type.block_bytes), np.uint8)
    one = np.full((len(numbers), 1), np.ones(1, "<f2").view("<u2")[0], np.int32)
    write(blocks, layout.d, one)
    write(blocks, layout.index, numbers)
    values = decode_blocks(TYPE_ID[name], blocks, (count, layout.vector)) / np.float32(layout.unit)
    table: Floats = values - SHIFT if layout.shifts else values
    table.flags.writeable = False
    return table
