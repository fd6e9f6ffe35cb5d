"""The best codewords for eight columns, in the metric that their errors have.

The loss of values x for targets t is (t − x) R Rᵀ (t − x)ᵀ, with R of the eight columns. Its
quadratic part depends only on codeword and signs, so it is a table, and the rest is one product.
"""

import numpy as np
from numpy.typing import NDArray

from minitron_quant.quantize.feedback.blocks import Floats
from minitron_quant.quantize.feedback.lattices import SHIFT, Lattice

Numbers = NDArray[np.int32]

# losses that are compared at a time: what the caches hold
_COMPARED = 1 << 18
_BITS = 1 << np.arange(8, dtype=np.int32)


class Octet:
    """Eight columns of one block: their R [8, 8], and the tables of the losses for it."""

    def __init__(self, lattice: Lattice, table: Floats, upper: Floats) -> None:
        self._lattice = lattice
        self._table = table
        self.upper = upper
        self.inverse: Floats = np.linalg.inv(upper)
        self._parts = [
            _Part(lattice, table, upper[k : k + lattice.vector, k : k + lattice.vector])
            for k in range(0, 8, lattice.vector)
        ]

    def nearest(
        self, targets: Floats, factors: Floats, down: NDArray[np.bool_]
    ) -> tuple[Floats, Numbers, Numbers]:
        """Values [8, n], codewords [8 / vector, n] and signs or shifts [n] as bits.

        targets: [8, n]. factors: [n]. down: where a group shares a shift, whether it goes down.
        """
        if self._lattice.shifts is not None:
            return self._shifted(targets, factors, down.astype(np.int32))
        values, index, signs = self._free(targets, factors)
        if self._lattice.even:
            odd = np.flatnonzero(np.bitwise_count(signs) & 1)
            chosen = signs[odd] ^ self._cheapest_flip(targets[:, odd], values[:, odd])
            signs[odd] = chosen
            values[:, odd], index[:, odd] = self._codewords(targets[:, odd], factors[odd], chosen)
        return values, index, signs

    def _shifted(
        self, targets: Floats, factors: Floats, down: Numbers
    ) -> tuple[Floats, Numbers, Numbers]:
        """With the shift given, or with the better one where eight columns have their own."""
        values, index = self._codewords(targets, factors, down)
        if self._lattice.shifted == 8:
            others, other_index = self._codewords(targets, factors, 1 - down)
            better = self.loss(targets, others) < self.loss(targets, values)
            values[:, better], index[:, better] = others[:, better], other_index[:, better]
            down = down ^ better
        return values, index, down

    def loss(self, targets: Floats, values: Floats) -> Floats:
        """What values cost, [n]."""
        left = self.upper.T @ (targets - values)
        loss: Floats = np.einsum("ij,ij->j", left, left)
        return loss

    def _free(self, targets: Floats, factors: Floats) -> tuple[Floats, Numbers, Numbers]:
        """With the signs of the targets, part by part."""
        signs = np.zeros(targets.shape[1], np.int32)
        values, index = np.empty_like(targets), np.empty((len(self._parts), signs.size), np.int32)
        for k, part in enumerate(self._parts):
            columns, wanted = self._wanted(k, targets, values)
            bits = _BITS[: len(wanted)] @ (wanted * factors < 0).astype(np.int32)
            values[columns], index[k] = part.nearest(wanted, factors, bits)
            signs |= bits << columns.start
        return values, index, signs

    def _codewords(
        self, targets: Floats, factors: Floats, patterns: Numbers
    ) -> tuple[Floats, Numbers]:
        """With signs or shifts that are given."""
        values = np.empty_like(targets)
        index = np.empty((len(self._parts), patterns.size), np.int32)
        for k, part in enumerate(self._parts):
            columns, wanted = self._wanted(k, targets, values)
            bits = (patterns >> columns.start) & ((1 << len(wanted)) - 1)
            values[columns], index[k] = part.nearest(wanted, factors, bits)
        return values, index

    def _wanted(self, k: int, targets: Floats, values: Floats) -> tuple[slice, Floats]:
        """The columns of a part and their targets, the errors of the part before paid back."""
        columns = slice(k * self._lattice.vector, (k + 1) * self._lattice.vector)
        wanted = targets[columns]
        if k:
            before = slice(0, columns.start)
            owed = self.upper[before, columns].T @ (targets[before] - values[before])
            wanted = wanted + self._parts[k].inverse.T @ owed
        return columns, wanted

    def _cheapest_flip(self, targets: Floats, values: Floats) -> Numbers:
        """The bit of the sign whose change costs least."""
        metric = self.upper @ self.upper.T
        left = metric @ (targets - values)
        cost = values * (left + values * metric.diagonal()[:, None])
        flips: Numbers = _BITS[cost.argmin(0)]
        return flips


class _Part:
    """The columns of one codeword: R [vector, vector] and the quadratic part of the losses."""

    def __init__(self, lattice: Lattice, table: Floats, upper: Floats) -> None:
        self.inverse = np.linalg.inv(upper)
        self._metric = upper @ upper.T
        self._table = table
        size = lattice.vector
        if lattice.signs is None:
            self._turns = np.ones((2, size), np.float32)
            self._moves = np.array([[SHIFT], [-SHIFT]], np.float32)
        else:
            patterns = np.arange(1 << size)[:, None] >> np.arange(size)
            self._turns = (1 - 2 * (patterns & 1)).astype(np.float32)
            self._moves = np.zeros((1 << size, 1), np.float32)
        self._square = self._squares()

    def _squares(self) -> Floats:
        """x M xᵀ of every pattern and codeword, [patterns, codewords]."""
        if not self._moves.any():
            pairs = np.einsum("ni,nj->nij", self._table, self._table).reshape(len(self._table), -1)
            turned = np.einsum("pi,ij,pj->pij", self._turns, self._metric, self._turns)
            squares: Floats = turned.reshape(len(self._turns), -1) @ pairs.T
            return squares
        words = self._table + self._moves[:, :, None]
        shifted: Floats = np.einsum("pni,ij,pnj->pn", words, self._metric, words, optimize=True)
        return shifted

    def nearest(
        self, targets: Floats, factors: Floats, patterns: Numbers
    ) -> tuple[Floats, Numbers]:
        """Values [vector, n] and codewords [n] of the least loss, signs or shifts given."""
        count = len(patterns)
        index = np.empty(count, np.int32)
        doubled = np.divide(2, factors, out=np.zeros_like(factors), where=factors != 0)
        slopes = (self._metric @ targets) * doubled * self._turns[patterns].T
        step = max(1, _COMPARED // len(self._table))
        for start in range(0, count, step):
            some = slice(start, start + step)
            losses = self._square[patterns[some]]
            losses -= slopes[:, some].T @ self._table.T
            index[some] = losses.argmin(1)
        words = self._table[index].T * self._turns[patterns].T + self._moves[patterns].T
        return words * factors, index
