"""Search the codewords for a vector of eight columns, in the metric of their errors.

The loss of values x for targets t is (t − x) R Rᵀ (t − x)ᵀ, with R of the eight columns. Its
quadratic part depends only on codeword and signs, so it is a table; the rest is one product.
"""

import numpy as np
from numpy.typing import NDArray

from minitron_quant.array_backend import Arrays, Floats, Ints
from minitron_quant.gptq.codebook_types import SHIFT, CodebookLayout


class VectorSearch:
    """The search for eight columns of a block: their R [8, 8] and its tables of losses."""

    def __init__(
        self, arrays: Arrays, layout: CodebookLayout, table: Floats, upper: Floats
    ) -> None:
        self._xp = xp = arrays.module
        self._layout = layout
        self._table = table
        self.upper = upper
        self.inverse: Floats = xp.linalg.inv(upper)
        self._powers = 2.0 ** xp.arange(8, dtype=xp.float32)
        self._parts = [
            _CodewordSearch(
                arrays, layout, table, upper[k : k + layout.vector, k : k + layout.vector]
            )
            for k in range(0, 8, layout.vector)
        ]

    def nearest(self, targets: Floats, factors: Floats, down: Ints) -> tuple[Floats, Ints, Ints]:
        """Values [8, n], codewords [8 / vector, n] and signs or shifts [n] as bits.

        targets: [8, n]. factors: [n]. down: 1 where a group shares a shift and it is down.
        """
        if self._layout.shifts is not None:
            return self._shifted(targets, factors, down)
        values, index, signs = self._free(targets, factors)
        if self._layout.even:
            odd = self._xp.where(_odd(signs))[0]
            chosen = signs[odd] ^ self._cheapest_flip(targets[:, odd], values[:, odd])
            signs[odd] = chosen
            values[:, odd], index[:, odd] = self._codewords(targets[:, odd], factors[odd], chosen)
        return values, index, signs

    def _shifted(self, targets: Floats, factors: Floats, down: Ints) -> tuple[Floats, Ints, Ints]:
        """With the shift given, or the better one where eight columns have a shift of their own."""
        values, index = self._codewords(targets, factors, down)
        if self._layout.shifted == 8:
            others, other_index = self._codewords(targets, factors, 1 - down)
            better = self.loss(targets, others) < self.loss(targets, values)
            values[:, better], index[:, better] = others[:, better], other_index[:, better]
            down = down ^ better
        return values, index, down

    def loss(self, targets: Floats, values: Floats) -> Floats:
        """The loss of values, [n]."""
        left = self.upper.T @ (targets - values)
        loss: Floats = self._xp.einsum("ij,ij->j", left, left)
        return loss

    def _free(self, targets: Floats, factors: Floats) -> tuple[Floats, Ints, Ints]:
        """With the signs of the targets, codeword by codeword."""
        xp = self._xp
        signs = xp.zeros(targets.shape[1], dtype=xp.int32)
        values = xp.empty_like(targets)
        index = xp.empty((len(self._parts), len(signs)), dtype=xp.int32)
        for k, part in enumerate(self._parts):
            columns, goals = self._part_targets(k, targets, values)
            bits = self._powers[: len(goals)] @ xp.asarray(goals * factors < 0, dtype=xp.float32)
            bits = xp.asarray(bits, dtype=xp.int32)
            values[columns], index[k] = part.nearest(goals, factors, bits)
            signs |= bits << columns.start
        return values, index, signs

    def _codewords(self, targets: Floats, factors: Floats, patterns: Ints) -> tuple[Floats, Ints]:
        """With given signs or shifts."""
        xp = self._xp
        values = xp.empty_like(targets)
        index = xp.empty((len(self._parts), len(patterns)), dtype=xp.int32)
        for k, part in enumerate(self._parts):
            columns, goals = self._part_targets(k, targets, values)
            bits = (patterns >> columns.start) & ((1 << len(goals)) - 1)
            values[columns], index[k] = part.nearest(goals, factors, bits)
        return values, index

    def _part_targets(self, k: int, targets: Floats, values: Floats) -> tuple[slice, Floats]:
        """The columns of a codeword and their targets, corrected for the codeword before."""
        columns = slice(k * self._layout.vector, (k + 1) * self._layout.vector)
        goals = targets[columns]
        if k:
            before = slice(0, columns.start)
            carried = self.upper[before, columns].T @ (targets[before] - values[before])
            goals = goals + self._parts[k].inverse.T @ carried
        return columns, goals

    def _cheapest_flip(self, targets: Floats, values: Floats) -> Ints:
        """The bit of the sign whose change adds least to the loss."""
        metric = self.upper @ self.upper.T
        left = metric @ (targets - values)
        cost = values * (left + values * metric.diagonal()[:, None])
        flips: Ints = 1 << self._xp.asarray(cost.argmin(0), dtype=self._xp.int32)
        return flips


class _CodewordSearch:
    """The columns of one codeword: R [vector, vector] and the quadratic part of the losses."""

    def __init__(
        self, arrays: Arrays, layout: CodebookLayout, table: Floats, upper: Floats
    ) -> None:
        self._xp = xp = arrays.module
        self._cells = arrays.cells
        self.inverse = xp.linalg.inv(upper)
        self._metric = upper @ upper.T
        self._table = table
        self._layout, size = layout, layout.vector
        if layout.signs is None:
            self._signs = xp.ones((2, size), dtype=xp.float32)
            self._shifts = xp.asarray([[SHIFT], [-SHIFT]], dtype=xp.float32)
        else:
            patterns = xp.arange(1 << size)[:, None] >> xp.arange(size)
            self._signs = xp.asarray(1 - 2 * (patterns & 1), dtype=xp.float32)
            self._shifts = xp.zeros((1 << size, 1), dtype=xp.float32)
        self._square = self._squares()

    def _squares(self) -> Floats:
        """x M xᵀ of every pattern and codeword, [patterns, codewords]."""
        if self._layout.shifts is None:
            table, signs = self._table, self._signs
            pairs = (table[:, :, None] * table[:, None]).reshape(len(table), -1)
            signed = signs[:, :, None] * self._metric * signs[:, None]
            squares: Floats = signed.reshape(len(signs), -1) @ pairs.T
            return squares
        words = self._table + self._shifts[:, :, None]
        shifted: Floats = ((words @ self._metric) * words).sum(2)
        return shifted

    def nearest(self, targets: Floats, factors: Floats, patterns: Ints) -> tuple[Floats, Ints]:
        """Values [vector, n] and codewords [n] of the least loss, signs or shifts given."""
        xp, count = self._xp, len(patterns)
        index = xp.empty(count, dtype=xp.int32)
        # zero where a factor is
        doubled = (factors != 0) / xp.where(factors != 0, factors / 2, 1)
        slopes = (self._metric @ targets) * doubled * self._signs[patterns].T
        step = max(1, self._cells // len(self._table))
        for start in range(0, count, step):
            some = slice(start, start + step)
            losses = self._square[patterns[some]]
            losses -= slopes[:, some].T @ self._table.T
            index[some] = losses.argmin(1)
        words = self._table[index].T * self._signs[patterns].T + self._shifts[patterns].T
        return words * factors, index


def _odd(numbers: Ints) -> NDArray[np.bool_]:
    """Whether the number of ones among eight bits is odd."""
    for shift in (4, 2, 1):
        numbers = numbers ^ (numbers >> shift)
    odd: NDArray[np.bool_] = (numbers & 1) != 0
    return odd
