"""Scalar types: codes column by column; the group's scale is searched near ggml's."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_core.gguf import TYPE_ID
from minitron_quant.array_backend import NUMPY, Arrays, Bytes, Floats, Ints, to_numpy
from minitron_quant.blocks import decode_blocks
from minitron_quant.gptq.bitfields import read, write
from minitron_quant.gptq.scalar_layouts import ScalarLayout

# the relative step of an f16 scale
_STEP = 0.02
_LEVELS = 256  # levels are whole numbers from −128 to 127

# steps to try; wider ones suit a group and cost those after it
_STEPS = (0, -1, 1, -2, 2)


class ScalarCoder:
    """The blocks of a run of rows in one scalar type, and the codes chosen for them."""

    def __init__(
        self, layout: ScalarLayout, blocks: Bytes, rows: int, arrays: Arrays = NUMPY
    ) -> None:
        self.layout = layout
        self._blocks = blocks
        self._xp = arrays.module
        self.group = layout.group
        self.levels = levels_of(layout)
        self._low, self._high = float(self.levels.min()), float(self.levels.max())
        table = _nearest_table(self.levels) if layout.levels is None else None
        self._nearest = None if table is None else arrays.put(table)
        self.scales = ScaleField(layout, blocks, rows, False, arrays)
        self.mins = None if layout.dmin is None else ScaleField(layout, blocks, rows, True, arrays)
        shape = (rows, self.scales.values.shape[1], self.group)
        self._chosen = self._xp.zeros(shape, dtype=self._xp.int8)

    @property
    def chosen(self) -> list[Any]:
        """Codes, scales and minimums, [rows, groups, …] each."""
        fields = [self.scales, self.mins] if self.mins else [self.scales]
        return [self._chosen, *(field.values for field in fields)]

    def choose(self, index: int, weights: Floats, targets: Floats, upper: Floats) -> Floats:
        """Choose codes and scale of one group: the scale of the least error."""
        moves = [(s, m) for s in _STEPS for m in (_STEPS if self.mins else (0,))]
        scales, factors = self.scales.tried(index, [s for s, _ in moves])
        mins, bases = None, self._xp.zeros((1, 1), dtype=self._xp.float32)
        if self.mins is not None:
            mins, bases = self.mins.tried(index, [m for _, m in moves])
        loss, errors, levels = self._try(weights, targets, upper, factors, bases)
        best = loss.argmin(0), self._xp.arange(loss.shape[1])
        self._chosen[:, index] = levels[:, *best].T
        self.scales.values[:, index] = scales[best]
        if self.mins is not None and mins is not None:
            self.mins.values[:, index] = mins[best]
        chosen: Floats = errors[:, *best]
        return chosen

    def _try(
        self, weights: Floats, targets: Floats, upper: Floats, factors: Floats, bases: Floats
    ) -> tuple[Floats, Floats, NDArray[np.int8]]:
        """Round column by column with every scale: losses [tried, rows], errors and levels."""
        xp, shape = self._xp, (len(weights), *factors.shape)
        errors = xp.empty(shape, dtype=xp.float32)
        levels = xp.empty(shape, dtype=xp.int8)
        loss = xp.zeros_like(factors)
        # zero where a factor is
        inverse = (factors != 0) / xp.where(factors != 0, factors, 1)
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
            xp.subtract(weight, level, out=errors[column])
            level -= target
            level *= diagonal[column]
            level *= level
            loss += level
        return loss, errors, levels

    def _round(self, values: Floats) -> Floats:
        xp = self._xp
        if self._nearest is None:
            xp.round(values, out=values)
            rounded: Floats = xp.clip(values, self._low, self._high, out=values)
            return rounded
        half_steps = xp.clip(xp.floor(values * 2), -_LEVELS, _LEVELS - 1)
        nearest: Floats = self._nearest[xp.asarray(half_steps + _LEVELS, dtype=xp.int32)]
        return nearest

    def pack(self) -> Bytes:
        """The blocks with the chosen codes and scales."""
        codes = np.zeros(_LEVELS, np.int32)
        codes[self.levels.astype(np.int64) + 128] = np.arange(len(self.levels))
        return self.packed(codes[to_numpy(self._chosen).astype(np.int16) + 128])

    def packed(self, codes: Ints) -> Bytes:
        """The blocks with these codes, rows by columns in their order, and the scales."""
        blocks = self._blocks.copy()
        write(blocks, self.layout.codes, codes.reshape(len(blocks), -1))
        self.scales.pack(blocks)
        if self.mins is not None:
            self.mins.pack(blocks)
        return blocks


class ScaleField:
    """The scales or the minimums of a run: f16 times an integer of a few bits, or f16 alone.

    values: the integers less their centre, or the f16 themselves, [rows, groups]. half_of: what
    they are multiplied with, [rows, groups]. low, high: of the integers; 0 where there are none.
    """

    def __init__(
        self, layout: ScalarLayout, blocks: Bytes, rows: int, minimum: bool, arrays: Arrays
    ) -> None:
        self._arrays, self.layout = arrays, layout
        self._field = layout.mins if minimum else layout.scales
        self.low = self.high = 0
        offset = layout.dmin if minimum else layout.d
        assert offset is not None
        self._half = slice(offset, offset + 2)
        self.sign = layout.min_sign if minimum else 1
        self._centre = 0 if minimum else layout.centre
        half = np.ascontiguousarray(blocks[:, self._half]).view("<f2").astype(np.float32)
        if self._field is None:
            self.values: Floats = arrays.put(half.reshape(rows, -1))
            self.half_of = arrays.module.ones_like(self.values)
            return
        numbers = read(blocks, self._field)
        if layout.signed:
            numbers = numbers.astype(np.int8).astype(np.int32)
        self.half_of = arrays.put(np.repeat(half, numbers.shape[1], 1).reshape(rows, -1))
        values = (numbers - self._centre).astype(np.float32)
        self.values = arrays.put(values.reshape(rows, -1))
        bits = layout.scale_bits
        centre = 1 << (bits - 1) if layout.signed else self._centre
        self.low, self.high = -centre, (1 << bits) - 1 - centre

    def tried(self, index: int, steps: list[int]) -> tuple[Floats, Floats]:
        """Values to try for a group and their factors, [steps, rows] each."""
        xp = self._arrays.module
        moves = xp.asarray(steps, dtype=xp.float32)[:, None]
        now = self.values[:, index]
        if self._field is None:
            halves = xp.asarray(now * (1 + _STEP * moves), dtype=xp.float16)
            values = xp.asarray(halves, dtype=xp.float32)
        else:
            values = xp.clip(now + moves, self.low, self.high)
        return values, self.sign * (self.half_of[:, index] * values)

    def pack(self, blocks: Bytes) -> None:
        """Write the values into their blocks."""
        values = to_numpy(self.values).reshape(len(blocks), -1)
        if self._field is None:
            blocks[:, self._half] = values.astype("<f2").view(np.uint8)
        else:
            numbers: Ints = values.astype(np.int32) + self._centre
            write(blocks, self._field, numbers)


def levels_of(layout: ScalarLayout) -> Floats:
    """The value of each code of a type, before scale and minimum."""
    if layout.levels is not None:
        return np.array(layout.levels, np.float32)
    return _table_of_iq4()


@cache
def _table_of_iq4() -> Floats:
    """The 16 levels of IQ4_NL, which IQ4_XS shares, as the library decodes them."""
    block = np.zeros(18, np.uint8)
    block[:2] = np.ones(1, "<f2").view(np.uint8)
    block[2:] = np.arange(16)
    return decode_blocks(TYPE_ID["iq4_nl"], block, (32,))[:16]


def _nearest_table(levels: Floats) -> Floats:
    """The nearest level of every half step from −256 to 255.5; midpoints are half steps."""
    middles = np.arange(-_LEVELS, _LEVELS) / 2 + 0.25
    nearest: Floats = levels[np.abs(middles[:, None] - levels).argmin(1)]
    return nearest
