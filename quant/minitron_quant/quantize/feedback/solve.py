"""The walk over columns: a group of them is chosen, its errors go to the groups after it."""

from typing import Protocol

import numpy as np

from minitron_quant.quantize.feedback.factor import BlockFactor, Floats

# columns whose feedback is brought up to date by one large product
_STRIP = 128


class GroupCoder(Protocol):
    """Chooses the codes of a group of columns that share a scale, for all rows of a run."""

    @property
    def group(self) -> int:
        """Columns of a group."""
        ...

    def choose(self, index: int, weights: Floats, targets: Floats, upper: Floats) -> Floats:
        """Choose the codes of group `index`; returns weights − values, [columns, rows].

        weights, targets: [columns, rows]. upper: R of the group's columns.
        """
        ...


def solve(coder: GroupCoder, values: Floats, blocks: list[BlockFactor]) -> Floats:
    """Choose all codes of the rows [rows, columns] of a run; returns rows − values chosen."""
    remains = np.empty_like(values)
    for block in blocks:
        part = values[:, block.start : block.end]
        weights = np.ascontiguousarray(part.T[block.order])
        errors = np.zeros_like(weights)
        for start in range(0, len(weights), _STRIP):
            end = min(start + _STRIP, len(weights))
            targets = weights[start:end].copy()
            if start:
                targets += block.unit[:start, start:end].T @ errors[:start]
            _solve_strip(coder, block, weights, targets, errors, start)
        remains[:, block.start + block.order] = errors.T
    return remains


def _solve_strip(
    coder: GroupCoder,
    block: BlockFactor,
    weights: Floats,
    targets: Floats,
    errors: Floats,
    start: int,
) -> None:
    size = coder.group
    for first in range(start, start + len(targets), size):
        columns = slice(first, first + size)
        wanted = targets[first - start : first - start + size]
        if first > start:
            wanted = wanted + block.unit[start:first, columns].T @ errors[start:first]
        index = (block.start + int(block.order[first])) // size
        errors[columns] = coder.choose(
            index, weights[columns], wanted, block.upper[columns, columns]
        )
