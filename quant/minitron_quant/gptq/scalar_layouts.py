"""The scalar types: each weight has its own code, and groups of weights share a scale.

value = d · (scale − centre) · level[code] − dmin · min. Formulas: dequantize_row_* of
ggml-quants.c (llama.cpp 0c1e57098).

The ternary types are left out, since they gain nothing: with GPTQ and their best scales they still
err more at 1.7 and 2.1 bits than IQ1_S at 1.6 (benchmarks/results/gptq.md).
"""

from dataclasses import dataclass

from minitron_quant.gptq.bitfields import Field, Plane, spread


@dataclass(frozen=True)
class ScalarLayout:
    """The layout of one type's blocks.

    d, dmin: byte offsets of the f16 factors (None: there is none). group: weights that share a
    scale. scales, mins: the fields of a block's groups, None where a block has only d (and m).
    signed: scales are stored as two's complement. levels: what each code stands for; None: the
    table of the IQ4 types.
    """

    group: int
    codes: Field
    levels: tuple[int, ...] | None
    d: int
    dmin: int | None = None
    scales: Field | None = None
    scale_bits: int = 0
    centre: int = 0
    signed: bool = False
    mins: Field | None = None
    min_sign: int = -1


def _strips(half: int, width: int, slots: int) -> list[list[int]]:
    """Items of `slots` slots: bytes run over `width` items, the slots over the rest of a half."""
    halves = 256 // half
    return [
        [h * half + k * width + i for h in range(halves) for i in range(width)]
        for k in range(slots)
    ]


_QUARTERS = _strips(128, 32, 4)
_NIBBLES = _strips(64, 32, 2)
_HALVES = [list(range(16)), list(range(16, 32))]
_BITS = [[32 * k + i for i in range(32)] for k in range(8)]

# six-bit scales and mins of eight groups in twelve bytes
_SCALES_K4 = (
    Plane(0, (0, 1, 2, 3), 6),
    Plane(8, (4, 5, 6, 7), 4),
    Plane(0, (4, 5, 6, 7), 2, 6, 4),
)
_MINS_K4 = (
    Plane(4, (0, 1, 2, 3), 6),
    Plane(8, (4, 5, 6, 7), 4, 4),
    Plane(4, (4, 5, 6, 7), 2, 6, 4),
)


def _moved(field: Field, by: int) -> Field:
    return tuple(Plane(p.start + by, p.items, p.bits, p.shift, p.at, p.word) for p in field)


def _range(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))


_Q3_SCALES = (
    Plane(96, tuple(range(8)), 4),
    Plane(96, tuple(range(8, 16)), 4, 4),
    *spread(104, [[4 * k + i for i in range(4)] for k in range(4)], 2, at=4),
)
_Q6_LOW = [
    [h * 128 + k * 64 + j * 32 + i for h in range(2) for j in range(2) for i in range(32)]
    for k in range(2)
]
_Q5_BITS = spread(2, [[8 * b + k for b in range(4)] for k in range(8)], 1, at=4)

_IQ4_NIBBLES = _strips(32, 16, 2)
_IQ4_SCALES = (
    *spread(4, [[0, 2, 4, 6], [1, 3, 5, 7]], 4),
    *(Plane(2, (k,), 2, 2 * k, 4, word=2) for k in range(8)),
)

LAYOUTS: dict[str, ScalarLayout] = {
    "q2_K": ScalarLayout(
        16, spread(16, _QUARTERS, 2), _range(0, 4), d=80, dmin=82,
        scales=(Plane(0, tuple(range(16)), 4),), scale_bits=4,
        mins=(Plane(0, tuple(range(16)), 4, 4),),
    ),
    "q3_K": ScalarLayout(
        16, (*spread(32, _QUARTERS, 2), *spread(0, _BITS, 1, at=2)), _range(-4, 8), d=108,
        scales=_Q3_SCALES, scale_bits=6, centre=32,
    ),
    "q4_K": ScalarLayout(
        32, spread(16, _NIBBLES, 4), _range(0, 16), d=0, dmin=2,
        scales=_moved(_SCALES_K4, 4), scale_bits=6, mins=_moved(_MINS_K4, 4),
    ),
    "q5_K": ScalarLayout(
        32, (*spread(48, _NIBBLES, 4), *spread(16, _BITS, 1, at=4)), _range(0, 32),
        d=0, dmin=2, scales=_moved(_SCALES_K4, 4), scale_bits=6, mins=_moved(_MINS_K4, 4),
    ),
    "q6_K": ScalarLayout(
        16, (*spread(0, _Q6_LOW, 4), *spread(128, _QUARTERS, 2, at=4)), _range(-32, 64),
        d=208, scales=(Plane(192, tuple(range(16)), 8),), scale_bits=8, signed=True,
    ),
    "q4_0": ScalarLayout(32, spread(2, _HALVES, 4), _range(-8, 16), d=0),
    "q4_1": ScalarLayout(32, spread(4, _HALVES, 4), _range(0, 16), d=0, dmin=2, min_sign=1),
    "q5_0": ScalarLayout(32, (*spread(6, _HALVES, 4), *_Q5_BITS), _range(-16, 32), d=0),
    "q5_1": ScalarLayout(
        32, (*spread(8, _HALVES, 4), *_moved(_Q5_BITS, 2)), _range(0, 32), d=0, dmin=2,
        min_sign=1,
    ),
    "q8_0": ScalarLayout(
        32, (Plane(2, tuple(range(32)), 8),), (*_range(0, 128), *_range(-128, 128)), d=0
    ),
    "iq4_nl": ScalarLayout(32, spread(2, _HALVES, 4), None, d=0),
    "iq4_xs": ScalarLayout(
        32, spread(8, _IQ4_NIBBLES, 4), None, d=0, scales=_IQ4_SCALES, scale_bits=6, centre=32
    ),
}  # fmt: skip
