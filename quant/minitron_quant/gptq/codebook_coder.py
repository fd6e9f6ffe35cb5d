"""Codebook types: codewords for eight columns at a time; the scale is searched near ggml's."""

from typing import Any

import numpy as np

from minitron_quant.array_backend import NUMPY, Arrays, Bytes, Floats, Ints, to_numpy
from minitron_quant.gptq.bitfields import read, write
from minitron_quant.gptq.codebook_search import VectorSearch
from minitron_quant.gptq.codebook_types import CODEBOOKS, codewords, factors, read_d

# steps of the scale to try
_STEPS = (0, -1, 1)


class CodebookCoder:
    """The blocks of a run of rows in one layout type, and what is chosen for them."""

    def __init__(self, name: str, blocks: Bytes, rows: int, arrays: Arrays = NUMPY) -> None:
        self._arrays, self._xp = arrays, arrays.module
        self.layout = CODEBOOKS[name]
        self.table = arrays.put(codewords(name))
        self._blocks = blocks
        self.group = self.layout.group
        shifts = (False, True) if self.layout.shifted == self.group else (False,)
        self._tried = [(s, down) for s in _STEPS for down in shifts]
        per_block = 256 // self.group
        self.d = arrays.put(np.repeat(read_d(blocks, self.layout), per_block, 1).reshape(rows, -1))
        self.scales = arrays.put(read(blocks, self.layout.scales).reshape(rows, -1))
        groups = self.scales.shape[1]
        words = self.group // self.layout.vector
        xp = self._xp
        self.index = xp.zeros((rows, groups, words), dtype=xp.int32)
        self.bits = xp.zeros((rows, groups, self.group // 8), dtype=xp.int32)

    @property
    def chosen(self) -> list[Any]:
        """Scales, codewords and signs or shifts, [rows, groups, …] each."""
        return [self.scales, self.index, self.bits]

    def choose(self, index: int, weights: Floats, targets: Floats, upper: Floats) -> Floats:
        """Choose codewords, signs and scale of one group: the scale of the least error."""
        most = (1 << self.layout.scale_bits) - 1
        xp, tries = self._xp, len(self._tried)
        moves = xp.asarray([s for s, _ in self._tried], dtype=xp.int32)[:, None]
        scales = xp.clip(self.scales[:, index] + moves, 0, most)
        scaled = factors(self.d[:, index], xp.asarray(scales, dtype=xp.float32), self.layout.unit)
        shifts = xp.asarray([int(d) for _, d in self._tried], dtype=xp.int32)
        down = (shifts[:, None] + xp.zeros_like(scales)).reshape(-1)
        carried = (targets - weights) * upper.diagonal()[:, None]
        errors, words, bits, loss = self._choose_vectors(
            xp.tile(weights, (tries,)), xp.tile(carried, (tries,)), upper, scaled.reshape(-1), down
        )
        rows = xp.arange(weights.shape[1])
        best = loss.reshape(tries, -1).argmin(0)
        flat = best * len(rows) + rows
        self.scales[:, index] = scales[best, rows]
        self.index[:, index] = words[:, flat].T
        self.bits[:, index] = bits[:, flat].T
        chosen: Floats = errors[:, flat]
        return chosen

    def _choose_vectors(
        self, weights: Floats, carried: Floats, upper: Floats, scaled: Floats, down: Ints
    ) -> tuple[Floats, Ints, Ints, Floats]:
        """Octet after search: errors [columns, n], codewords, signs or shifts, and losses [n].

        carried: what the errors of the columns before the group ask for, times R's diagonal.
        """
        xp = self._xp
        errors = xp.empty_like(weights)
        loss = xp.zeros_like(scaled)
        words, bits = [], []
        for start in range(0, self.group, 8):
            columns = slice(start, start + 8)
            search = VectorSearch(self._arrays, self.layout, self.table, upper[columns, columns])
            correction = carried[columns] + upper[:start, columns].T @ errors[:start]
            goals = weights[columns] + search.inverse.T @ correction
            values, index, signs = search.nearest(goals, scaled, down)
            errors[columns] = weights[columns] - values
            loss += search.loss(goals, values)
            words.append(index)
            bits.append(signs)
        return errors, xp.concatenate(words), xp.stack(bits), loss

    def pack(self) -> Bytes:
        """The blocks with the chosen codes and scales."""
        blocks, layout = self._blocks.copy(), self.layout
        count = len(blocks)
        write(blocks, layout.index, to_numpy(self.index).reshape(count, -1))
        write(blocks, layout.scales, to_numpy(self.scales).reshape(count, -1))
        bits = to_numpy(self.bits).reshape(count, -1)
        if layout.signs is not None:
            write(blocks, layout.signs, bits)
        if layout.shifts is not None:
            write(blocks, layout.shifts, bits[:, :: layout.shifted // 8])
        return blocks
