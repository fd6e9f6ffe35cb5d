"""minitron sensitivity: what an error in each tensor does to the whole model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from minitron_cli.options.parameters import (
    Force,
    GpuLayers,
    Json,
    ModelPath,
    Quiet,
    Threads,
    Verbose,
    gpu_layers,
)

EXAMPLES = """minitron sensitivity nano-llama-F16.gguf -f examples/calibration.txt
minitron sensitivity model-F16.gguf -f calibration.txt --imatrix model.imatrix.gguf --budget 30m
minitron sensitivity model-F16.gguf -f calibration.txt --tokens 8192 --resume"""


def sensitivity(
    model: ModelPath,
    text: Annotated[Path, typer.Option("-f", "--file", help="The calibration text.")],
    imatrix: Annotated[
        Path | None, typer.Option(help="An importance matrix; made of the text by default.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The file to write; {Model}.sensitivity.json by default."
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens to measure each tensor on; 2048, or what --budget lets."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="30m", help="Stop after this time: 90s, 30m or 2h.")
    ] = None,
    ctx: Annotated[int, typer.Option("--ctx", "-c", min=16, help="Tokens of a chunk.")] = 512,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what an earlier run has measured.")
    ] = False,
    threads: Threads = None,
    layers: GpuLayers = "auto",
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure how much a model minds errors in each tensor: what quantize --size solves with."""
    from minitron_cli.inputs import folder_for_results, local_model
    from minitron_cli.output import Output
    from minitron_cli.output_checks import refuse_existing
    from minitron_cli.units import parse_time
    from minitron_quant.chunking import ChunkSettings
    from minitron_quant.mixed_precision.measure import (
        DEFAULT_TOKENS,
        SensitivitySettings,
        measure_sensitivity,
    )
    from minitron_quant.quantize.prepare import model_name

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    folder, model = folder_for_results(model), local_model(model, out)
    path = output or folder / f"{model_name(model)}.sensitivity.json"
    refuse_existing(path, force or resume)
    settings = SensitivitySettings(
        model=model,
        text=text,
        output=path,
        imatrix=imatrix,
        tokens=tokens or (DEFAULT_TOKENS if budget is None else None),
        budget=None if budget is None else parse_time(budget),
        chunks=ChunkSettings(ctx, n_batch=ctx, threads=threads),
        gpu_layers=gpu_layers(layers),
        resume=resume,
    )
    with out.progress() as listener:
        measured = measure_sensitivity(settings, listener)
    _show(out, path, settings.imatrix_output, measured)


def _show(out: Any, path: Path, imatrix: Path, measured: Any) -> None:
    tokens = measured.chunks * measured.ctx
    if out.as_json:
        out.document(
            {
                "path": str(path),
                "imatrix": str(imatrix),
                "tokens": tokens,
                "error_pct": None if measured.chunks < 2 else 100 * measured.error,
                "device": measured.device,
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
    certain = f" ± {100 * measured.error:.0f} %" if measured.chunks > 1 else ""
    out.text(
        f"wrote {path} ({len(measured.tensors)} tensors on {tokens} tokens each{certain}) "
        f"and {imatrix.name}"
    )
