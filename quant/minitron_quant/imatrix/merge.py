"""Several importance matrices of one model become one: sums and counts add up."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minitron_engine.errors import Damaged, Usage
from minitron_quant.imatrix.files import read_imatrix
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix

# the old format tells calls, not tokens; its sums become sums over tokens by this factor
_DEFAULT_CHUNK = 512


def merge(paths: Sequence[Path]) -> ImportanceMatrix:
    """Merge files as llama-imatrix merges its --in-file, in float32 and in the order given.

    Raises Usage for fewer than two files, Damaged where sizes show that the models differ.
    """
    if len(paths) < 2:
        raise Usage("there is nothing to merge: give two files or more")
    matrices = [read_imatrix(path) for path in paths]
    sizes = [matrix.chunk_size for matrix in matrices if matrix.chunk_size]
    merged = ImportanceMatrix(chunk_size=sizes[0] if sizes else _DEFAULT_CHUNK)
    for path, matrix in zip(paths, matrices, strict=True):
        factor = 1 if matrix.chunk_size else merged.chunk_size
        for name, entry in matrix.entries.items():
            before = merged.entries.get(name)
            merged.entries[name] = _add(before, entry, factor, f"{name} of {path.name}")
        merged.datasets += matrix.datasets
    most = max(int(entry.counts.max()) for entry in merged.entries.values())
    merged.chunk_count = most // merged.chunk_size
    return merged


def _add(before: Entry | None, entry: Entry, factor: int, what: str) -> Entry:
    sums, counts = entry.sums * np.float32(factor), entry.counts * factor
    if before is None:
        return Entry(sums, counts)
    if before.sums.size != sums.size or len(before.counts) not in (1, len(counts)):
        raise Damaged(f"{what} has another size than before", "it was made for another model")
    total = before.sums.reshape(sums.shape) + sums
    return Entry(total, np.broadcast_to(before.counts, counts.shape) + counts)
