"""Merge importance matrices of one model: sums and counts add up."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minitron_core.errors import Damaged, Usage
from minitron_quant.imatrix.files import read_imatrix
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix
from minitron_quant.provenance import CalibrationOrigin

# the old format counts calls, not tokens; this factor makes its sums sums over tokens
_DEFAULT_CHUNK = 512


def merge(paths: Sequence[Path]) -> ImportanceMatrix:
    """Merge files as llama-imatrix merges its --in-file, in float32 and in the order given.

    Totals and the origin stay where every file has them. Raises Usage for fewer than two files,
    Damaged where sizes or origins show that the models differ.
    """
    if len(paths) < 2:
        raise Usage("merging needs at least two files")
    matrices = [read_imatrix(path) for path in paths]
    sizes = [matrix.chunk_size for matrix in matrices if matrix.chunk_size]
    merged = ImportanceMatrix(chunk_size=sizes[0] if sizes else _DEFAULT_CHUNK)
    for path, matrix in zip(paths, matrices, strict=True):
        factor = 1 if matrix.chunk_size else merged.chunk_size
        for name, entry in matrix.entries.items():
            before = merged.entries.get(name)
            merged.entries[name] = _add(before, entry, factor, f"{name} of {path.name}")
        merged.datasets += matrix.datasets
    merged.origin = _origin(paths, matrices)
    most = max(int(entry.counts.max()) for entry in merged.entries.values())
    merged.chunk_count = most // merged.chunk_size
    return merged


def _origin(
    paths: Sequence[Path], matrices: Sequence[ImportanceMatrix]
) -> CalibrationOrigin | None:
    known = [(path, m.origin) for path, m in zip(paths, matrices, strict=True) if m.origin]
    for path, origin in known:
        if origin.model != known[0][1].model:
            raise Damaged(f"{path.name} was made for another model than {known[0][0].name}")
    if len(known) < len(paths):
        return None
    return CalibrationOrigin(
        known[0][1].model, tuple(text for _, origin in known for text in origin.texts)
    )


def _add(before: Entry | None, entry: Entry, factor: int, what: str) -> Entry:
    sums, counts = entry.sums * np.float32(factor), entry.counts * factor
    if before is None:
        return Entry(sums, counts, entry.totals)
    if before.sums.size != sums.size or len(before.counts) not in (1, len(counts)):
        raise Damaged(f"{what} has another size than before", "it was made for another model")
    totals = None
    if before.totals is not None and entry.totals is not None:
        totals = before.totals.reshape(sums.shape) + entry.totals
    counts = np.broadcast_to(before.counts, counts.shape) + counts
    return Entry(before.sums.reshape(sums.shape) + sums, counts, totals)
