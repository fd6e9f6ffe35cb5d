"""The sensitivity of tensors to quantization error."""

from pathlib import Path

from minitron_cli.output import Output
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity


def show_sensitivity(
    out: Output, path: Path, imatrix: Path, measured: Sensitivity, *, kept: bool = False
) -> None:
    """Where the sensitivity was written, and how certain it is.

    kept: it was there, made from the same.
    """
    tokens = measured.chunks * measured.ctx
    if out.as_json:
        out.document(
            {
                "path": str(path),
                "imatrix": str(imatrix),
                "tokens": tokens,
                "error_pct": None if measured.chunks < 2 else 100 * measured.error,
                "device": measured.device,
                "kept": kept,
                "tensors": {
                    name: {
                        "alpha": tensor.alpha,
                        "error_pct": None if measured.chunks < 2 else 100 * tensor.error,
                    }
                    for name, tensor in measured.tensors.items()
                },
            }
        )
        return
    if kept:
        out.text(f"{path} is up to date")
        return
    certain = f" ± {100 * measured.error:.0f} %" if measured.chunks > 1 else ""
    out.text(
        f"wrote {path} ({len(measured.tensors)} tensors on {tokens} tokens each{certain}) "
        f"and {imatrix.name}"
    )
