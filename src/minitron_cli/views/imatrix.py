"""Importance matrices: collected, merged, and their statistics."""

from dataclasses import asdict
from pathlib import Path

from minitron_cli.output import Output
from minitron_quant.imatrix.collect import Collected
from minitron_quant.imatrix.matrix import ImportanceMatrix
from minitron_quant.imatrix.statistics import (
    layer_statistics,
    unreached_experts,
    weight_statistics,
)

_SHOWN = 8
_WEIGHTS = {
    "Weight": "{0.name}",
    "Σ(Act²)": "{0.total:.2f}",
    "Min": "{0.least:.4f}",
    "Max": "{0.most:.4f}",
    "μ": "{0.mean:.2f}",
    "σ": "{0.deviation:.2f}",
    "Active (%)": "{0.active_pct:.2f}",
    "N": "{0.columns}",
    "Entropy": "{0.entropy:.4f}",
    "E (norm %)": "{0.entropy_pct:.2f}",
    "ZD (%)": "{0.z_pct:.2f}",
    "CosSim": "{0.similarity:.4f}",
}
_LAYERS = {
    "Layer": "{0.layer}",
    "μΣ(Act²)": "{0.total:.2f}",
    "μZD (%)": "{0.z_pct:.4f}",
    "μCosSim": "{0.similarity:.4f}",
}


def show_collected(out: Output, path: Path, collected: Collected) -> None:
    """A matrix that was collected, and the experts that no token of the text reached."""
    matrix = collected.matrix
    facts = f"{len(matrix.entries)} entries, {matrix.chunk_count} chunks"
    ppl, error = collected.perplexity or (None, None)
    if ppl is not None:
        facts += f", perplexity {ppl:.4f} ± {error:.5f}"
    unreached = unreached_experts(matrix)
    document = {
        "path": str(path),
        "entries": len(matrix.entries),
        "chunks": matrix.chunk_count,
        "ctx": matrix.chunk_size,
        "datasets": matrix.datasets,
        "device": collected.device,
        "resumed_after": collected.resumed,
        "ppl": ppl,
        "ppl_error": error,
        "unreached_experts": unreached,
    }
    for line in _coverage_lines(unreached):
        out.note(line)
    out.result(document, f"wrote {path} ({facts})")


def _coverage_lines(unreached: dict[str, list[int]]) -> list[str]:
    """One line per layer and set of experts that no token reached."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, experts in unreached.items():
        layer, _, weight = name.removesuffix(".weight").rpartition(".")
        groups.setdefault((layer, tuple(experts)), []).append(weight)
    lines = []
    for (layer, missing), weights in groups.items():
        shown = ", ".join(map(str, missing[:_SHOWN]))
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        plural = "experts" if len(missing) > 1 else "expert"
        lines.append(
            f"{layer}: no token reached {plural} {shown}{more} of {', '.join(weights)}; "
            "they count as ones"
        )
    return lines


def show_merged(out: Output, path: Path, matrix: ImportanceMatrix) -> None:
    """A matrix that was merged of several."""
    document = {
        "path": str(path),
        "entries": len(matrix.entries),
        "chunks": matrix.chunk_count,
        "datasets": matrix.datasets,
    }
    facts = f"{len(matrix.entries)} entries, {matrix.chunk_count} chunks"
    out.result(document, f"wrote {path} ({facts})")


def show_statistics(out: Output, matrix: ImportanceMatrix) -> None:
    """The statistics of every weight and layer, with llama.cpp's headings."""
    weights = weight_statistics(matrix)
    layers = layer_statistics(weights)
    unreached = unreached_experts(matrix)
    if out.as_json:
        out.document(
            {
                "datasets": matrix.datasets,
                "chunks": matrix.chunk_count,
                "origin": asdict(matrix.origin) if matrix.origin else None,
                "weights": [asdict(row) for row in weights],
                "layers": [asdict(row) for row in layers],
                "unreached_experts": unreached,
            }
        )
        return
    out.table([*_WEIGHTS], [[cell.format(row) for cell in _WEIGHTS.values()] for row in weights])
    out.text("")
    out.table([*_LAYERS], [[cell.format(row) for cell in _LAYERS.values()] for row in layers])
    for line in _coverage_lines(unreached):
        out.note(line)
