"""Sums over the rows of a product's input."""

import numpy as np
from numpy.typing import NDArray

from minitron_quant.imatrix.matrix import Entry


def add_rows(entry: Entry, matrix: int, rows: NDArray[np.float32]) -> None:
    """Add Σ rows² and, where the entry has totals, Σ rows to one matrix of an entry.

    Squares are added one row after the other in float32, in llama-imatrix's order: reduce does so
    on axis 0. Totals of a batch are float32, their sum over batches is float64.
    """
    squares = rows * rows
    squares[0] += entry.sums[matrix]
    entry.sums[matrix] = np.add.reduce(squares, axis=0)
    if entry.totals is not None:
        entry.totals[matrix] += np.add.reduce(rows, axis=0)
