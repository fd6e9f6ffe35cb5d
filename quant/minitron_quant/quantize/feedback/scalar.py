"""Scalar types: codes column by column, the group's scale searched near the encoder's own."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from minitron_convert.gguf_file import TYPE_ID
from minitron_engine.library import decode
from minitron_quant.quantize.feedback.factor import Floats
from minitron_quant.quantize.feedback.fields import Bytes, Ints, read, write
from minitron_quant.quantize.feedback.layouts import Scalar

# how far an f16 scale is moved by one step of the search
_STEP = np.float32(0.02)
_LEVELS = 256  # levels are whole numbers from −128 to 127


# the steps that are tried; wider ones find scales that suit a group and cost those after it
_STEPS = (0, -1, 1, -2, 2)


class ScalarCoder:
    """The blocks of a run of rows in one scalar type, and what is chosen for them."""

    def __init__(self, layout: Scalar, blocks: Bytes, rows: int) -> None:
        self._layout = layout
        self._blocks = blocks
        self.group = layout.group
        self._levels = levels_of(layout)
        self._low, self._high = float(self._levels.min()), float(self._levels.max())
        self._nearest = _nearest_table(self._levels) if layout.levels is None else None
        self._scales = _Factor(layout, blocks, rows, minimum=False)
        self._mins = None if layout.dmin is None else _Factor(layout, blocks, rows, minimum=True)
        self._chosen = np.zeros((rows, self._scales.values.shape[1], self.group), np.int8)

    def choose(self, index: int, weights: Floats, targets: Floats, upper: Floats) -> Floats:
        """Codes and scale of one group: of all scales tried, that of the least error."""
        moves = [(s, m) for s in _STEPS for m in (_STEPS if self._mins else (0,))]
        scales, factors = self._scales.tried(index, [s for s, _ in moves])
        mins, bases = None, np.zeros((1, 1), np.float32)
        if self._mins is not None:
            mins, bases = self._mins.tried(index, [m for _, m in moves])
        loss, errors, levels = self._try(weights, targets, upper, factors, bases)
        best = loss.argmin(0), np.arange(loss.shape[1])
        self._chosen[:, index] = levels[:, *best].T
        self._scales.values[:, index] = scales[best]
        if self._mins is not None and mins is not None:
            self._mins.values[:, index] = mins[best]
        chosen: Floats = errors[:, *best]
        return chosen

    def _try(
        self, weights: Floats, targets: Floats, upper: Floats, factors: Floats, bases: Floats
    ) -> tuple[Floats, Floats, NDArray[np.int8]]:
        """Round column after column with every scale: losses [tried, rows], errors and levels."""
        shape = (len(weights), *factors.shape)
        errors = np.empty(shape, np.float32)
        levels = np.empty(shape, np.int8)
        loss = np.zeros(factors.shape, np.float32)
        inverse = np.divide(1, factors, out=np.zeros_like(factors), where=factors != 0)
        flat = errors.reshape(len(weights), -1)
        diagonal = upper.diagonal()
        for column, weight in enumerate(weights):
            target = targets[column]
            if column:
                unit = upper[:column, column] / diagonal[column]
                target = target + (unit @ flat[:column]).reshape(factors.shape)
            level = self._round((target - bases) * inverse)
            levels[column] = level
            level *= factors
            level += bases
            np.subtract(weight, level, out=errors[column])
            level -= target
            level *= diagonal[column]
            level *= level
            loss += level
        return loss, errors, levels

    def _round(self, values: Floats) -> Floats:
        if self._nearest is None:
            np.rint(values, out=values)
            return np.clip(values, self._low, self._high, out=values)
        half_steps = np.clip(np.floor(values * 2), -_LEVELS, _LEVELS - 1).astype(np.int16)
        return self._nearest[half_steps + _LEVELS]

    def pack(self) -> Bytes:
        """The blocks with everything that was chosen."""
        blocks = self._blocks.copy()
        codes = np.zeros(_LEVELS, np.int32)
        codes[self._levels.astype(np.int64) + 128] = np.arange(len(self._levels))
        levels = self._chosen.reshape(len(blocks), -1)
        write(blocks, self._layout.codes, codes[levels.astype(np.int16) + 128])
        self._scales.pack(blocks)
        if self._mins is not None:
            self._mins.pack(blocks)
        return blocks


class _Factor:
    """The scales or the minimums of a run: f16 times an integer of a few bits, or f16 alone.

    values: the integers as they are multiplied, or the f16 themselves, [rows, groups].
    """

    def __init__(self, layout: Scalar, blocks: Bytes, rows: int, minimum: bool) -> None:
        self._layout = layout
        self._field = layout.mins if minimum else layout.scales
        offset = layout.dmin if minimum else layout.d
        assert offset is not None
        self._half = slice(offset, offset + 2)
        self._sign = np.float32(layout.min_sign if minimum else 1)
        self._centre = 0 if minimum else layout.centre
        half = np.ascontiguousarray(blocks[:, self._half]).view("<f2").astype(np.float32)
        if self._field is None:
            self.values: NDArray[np.float32] = half.reshape(rows, -1)
            self._half_of = np.ones_like(self.values)
            return
        numbers = read(blocks, self._field)
        if layout.signed:
            numbers = numbers.astype(np.int8).astype(np.int32)
        self._half_of = np.repeat(half, numbers.shape[1], 1).reshape(rows, -1)
        self.values = (numbers - self._centre).astype(np.float32).reshape(rows, -1)
        bits = layout.scale_bits
        centre = 1 << (bits - 1) if layout.signed else self._centre
        self._low, self._high = -centre, (1 << bits) - 1 - centre

    def tried(self, index: int, steps: list[int]) -> tuple[Floats, Floats]:
        """What is tried for a group, and the factors that it gives: [steps, rows] each."""
        moves = np.array(steps, np.float32)[:, None]
        now = self.values[:, index]
        if self._field is None:
            values = (now * (1 + _STEP * moves)).astype(np.float16).astype(np.float32)
        else:
            values = np.clip(now + moves, self._low, self._high)
        return values, self._sign * (self._half_of[:, index] * values)

    def pack(self, blocks: Bytes) -> None:
        """Write the values into their blocks."""
        values = self.values.reshape(len(blocks), -1)
        if self._field is None:
            blocks[:, self._half] = values.astype("<f2").view(np.uint8)
        else:
            numbers: Ints = values.astype(np.int32) + self._centre
            write(blocks, self._field, numbers)


def levels_of(layout: Scalar) -> NDArray[np.float32]:
    """What each code of a type stands for, before scale and minimum."""
    if layout.levels is not None:
        return np.array(layout.levels, np.float32)
    return _table_of_iq4()


@cache
def _table_of_iq4() -> NDArray[np.float32]:
    """The 16 levels of IQ4_NL, which IQ4_XS shares, as the library decodes them."""
    block = np.zeros(18, np.uint8)
    block[:2] = np.ones(1, "<f2").view(np.uint8)
    block[2:] = np.arange(16)
    values = np.empty(32, np.float32)
    decode(TYPE_ID["iq4_nl"], block.ctypes.data, values.ctypes.data, 32)
    return values[:16]


def _nearest_table(levels: Floats) -> Floats:
    """The nearest level of every half step from −256 to 255.5; midpoints are half steps."""
    middles = np.arange(-_LEVELS, _LEVELS) / 2 + 0.25
    nearest: Floats = levels[np.abs(middles[:, None] - levels).argmin(1)]
    return nearest
