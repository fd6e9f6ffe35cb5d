"""minitron imatrix-stats: what an importance matrix says about each weight."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import Json, Quiet, Verbose

EXAMPLES = """minitron imatrix-stats nano-llama.imatrix.gguf
minitron imatrix-stats nano-llama.imatrix.gguf --json"""

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


def imatrix_stats(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An importance matrix.")],
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show the statistics of an importance matrix by weight and by layer."""
    from minitron_cli.calibration import coverage_lines
    from minitron_cli.output import Output
    from minitron_quant.imatrix.files import read_imatrix
    from minitron_quant.imatrix.statistics import (
        layer_statistics,
        unreached_experts,
        weight_statistics,
    )

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    matrix = read_imatrix(file)
    weights = weight_statistics(matrix)
    layers = layer_statistics(weights)
    unreached = unreached_experts(matrix)
    if as_json:
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
    for line in coverage_lines(unreached):
        out.note(line)
