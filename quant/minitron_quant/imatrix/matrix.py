"""The importance matrix in memory, and the weights that quantization takes from it."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_quant.array_backend import Doubles, Floats
from minitron_quant.provenance import CalibrationOrigin


@dataclass
class Entry:
    """One weight's statistics.

    sums: [matrices, columns], Σx² of every input column over the tokens seen (in the legacy format
    mean × calls), float32 as in a file or float64. counts: [matrices], tokens seen (legacy: calls).
    totals: [matrices, columns], Σx, where they were collected. Dense weights have one matrix,
    mixtures of experts one per expert.
    """

    sums: NDArray[Any]
    counts: NDArray[np.int64]
    totals: Doubles | None = None

    def mean(self) -> Doubles | None:
        """E[x] of every input column, [matrices, columns]; 0 for an expert that no token reached.

        None where only squares were collected.
        """
        if self.totals is None:
            return None
        return self.totals / np.maximum(self.counts, 1)[:, None]

    def copy(self) -> "Entry":
        """The same numbers in memory of their own."""
        totals = None if self.totals is None else self.totals.copy()
        return Entry(self.sums.copy(), self.counts.copy(), totals)


@dataclass
class ImportanceMatrix:
    """Entries by the name of the weight, and where they came from; sizes in tokens."""

    entries: dict[str, Entry] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    chunk_count: int = 0
    chunk_size: int = 0
    origin: CalibrationOrigin | None = None

    def plain(self) -> "ImportanceMatrix":
        """Only what llama-imatrix knows: no totals, no origin."""
        entries = {name: Entry(entry.sums, entry.counts) for name, entry in self.entries.items()}
        return replace(self, entries=entries, origin=None)

    def weights(self) -> dict[str, Floats]:
        """Mean squares by name, [matrices, columns] float32, exactly as llama-quantize has them.

        An expert that no token reached gets ones. Source: load_imatrix of tools/quantize.
        """
        return {name: _mean(entry) for name, entry in self.entries.items()}


def _mean(entry: Entry) -> NDArray[Any]:
    # the division happens in float32, as in llama-quantize: bytes depend on it
    counts = entry.counts.astype(np.float32)[:, None]
    reached = counts > 0
    mean = entry.sums.astype(np.float32) / np.where(reached, counts, np.float32(1))
    return np.where(reached, mean, np.float32(1))
