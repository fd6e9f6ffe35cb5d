"""Statistics of each weight's input, from an importance matrix.

Definitions: compute_statistics() and compute_cossim() of tools/imatrix (llama.cpp 0c1e57098), on
a = sums / counts, the mean square of every input column. Experts that no token reached are left
out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_core.gguf import in_layer, layer_number
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix

_ACTIVE = 1e-5


@dataclass(frozen=True)
class WeightStatistics:
    """One weight.

    total: Σa. deviation: σ of a. active: share of |a| above 1e-5. entropy: in bits, of a / Σa.
    z: share more than one σ above the mean. similarity: cosine of the sums with those of the same
    weight one layer before, 0 where there is none. coverage: share of experts reached.
    """

    name: str
    layer: int | None
    total: float
    least: float
    most: float
    mean: float
    deviation: float
    active_pct: float
    columns: int
    entropy: float
    entropy_pct: float
    z_pct: float
    similarity: float
    coverage_pct: float


@dataclass(frozen=True)
class LayerStatistics:
    """Means over a layer's weights, each counted by its columns."""

    layer: int
    total: float
    z_pct: float
    similarity: float


def weight_statistics(matrix: ImportanceMatrix) -> list[WeightStatistics]:
    """Statistics of every weight that a token reached, by layer and name."""
    rows = [
        _of_weight(name, entry, _similarity(matrix, name, entry))
        for name, entry in matrix.entries.items()
        if entry.counts.any()
    ]
    return sorted(rows, key=lambda row: (row.layer is None, row.layer or 0, row.name))


def layer_statistics(rows: list[WeightStatistics]) -> list[LayerStatistics]:
    """Statistics by layer."""
    result = []
    for layer in sorted({row.layer for row in rows if row.layer is not None}):
        part = [row for row in rows if row.layer == layer]
        columns = [row.columns for row in part]
        values = ([getattr(row, key) for row in part] for key in ("total", "z_pct", "similarity"))
        means = [float(np.average(value, weights=columns)) for value in values]
        result.append(LayerStatistics(layer, *means))
    return result


def unreached_experts(matrix: ImportanceMatrix) -> dict[str, list[int]]:
    """The experts that no token reached, by the name of the weight."""
    found = {
        name: np.flatnonzero(entry.counts == 0).tolist() for name, entry in matrix.entries.items()
    }
    return {name: experts for name, experts in sorted(found.items()) if experts}


def _of_weight(name: str, entry: Entry, similarity: float) -> WeightStatistics:
    counts = entry.counts
    reached = counts > 0
    sums = entry.sums.reshape(len(counts), -1)[reached].astype(np.float64)
    a = (sums / counts[reached, None]).ravel()
    total, mean = float(a.sum()), float(a.mean())
    deviation = float(np.sqrt(max(float((a * a).mean()) - mean * mean, 0.0)))
    entropy = _entropy(a / total) if total > 0 else 0.0
    return WeightStatistics(
        name=name,
        layer=layer_number(name),
        total=total,
        least=float(a.min()),
        most=float(a.max()),
        mean=mean,
        deviation=deviation,
        active_pct=100 * float((np.abs(a) > _ACTIVE).mean()),
        columns=a.size,
        entropy=entropy,
        entropy_pct=100 * entropy / float(np.log2(a.size)) if a.size > 1 else 0.0,
        z_pct=100 * float((a - mean > deviation).mean()) if deviation > 0 else 0.0,
        similarity=similarity,
        coverage_pct=100 * float(reached.mean()),
    )


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def _similarity(matrix: ImportanceMatrix, name: str, entry: Entry) -> float:
    layer = layer_number(name)
    if layer is None:
        return 0.0
    before = matrix.entries.get(in_layer(name, layer - 1))
    if before is None or before.sums.size != entry.sums.size:
        return 0.0
    a, b = (values.astype(np.float64).ravel() for values in (entry.sums, before.sums))
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else 0.0
