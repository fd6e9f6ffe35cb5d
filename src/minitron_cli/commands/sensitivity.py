"""minitron sensitivity: how the model's output reacts to an error in each tensor."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.generation import DeviceOptions
from minitron_cli.options.parameters import (
    ConsoleOptions,
    Force,
    GpuLayers,
    ModelPath,
    Threads,
    gpu_layers,
)
from minitron_core.errors import MinitronError

EXAMPLES = """minitron sensitivity nano-llama-F16.gguf -f examples/calibration.txt
minitron sensitivity model-F16.gguf -f calibration.txt --imatrix model.imatrix.gguf --budget 30m
minitron sensitivity model-F16.gguf -f calibration.txt --tokens 8192 --resume"""


def sensitivity(
    model: ModelPath,
    text: Annotated[Path, typer.Option("-f", "--file", help="The calibration text.")],
    imatrix: Annotated[
        Path | None,
        typer.Option(help="An importance matrix; by default made from the text."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file to write; {Model}.sensitivity.json."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens to measure each tensor on; 2048, or as --budget allows."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="30m", help="Stop after this time: 90s, 30m or 2h.")
    ] = None,
    ctx: Annotated[int, typer.Option("--ctx", "-c", min=16, help="Tokens of a chunk.")] = 512,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an earlier run.")] = False,
    threads: Threads = None,
    layers: GpuLayers = "auto",
    force: Force = False,
    *,
    spread: DeviceOptions,
    console: ConsoleOptions,
) -> None:
    """Measure each tensor's sensitivity to quantization error, for quantize --size."""
    from minitron.mixed_precision import sensitivity as measure_sensitivity
    from minitron_cli.inputs import check_output, folder_for_results, is_up_to_date, local_model
    from minitron_cli.units import parse_time
    from minitron_cli.views.sensitivity import show_sensitivity
    from minitron_core.made_from import inputs_key, record_inputs
    from minitron_quant.chunking import ChunkSettings
    from minitron_quant.mixed_precision.measure import DEFAULT_TOKENS, SensitivitySettings
    from minitron_quant.mixed_precision.sensitivity_file import read_sensitivity
    from minitron_quant.quantize.prepare import model_name

    out = console.output()
    check_output(output)
    folder, model = folder_for_results(model), local_model(model, out)
    path = output or folder / f"{model_name(model)}.sensitivity.json"
    settings = SensitivitySettings(
        model=model,
        text=text,
        output=path,
        imatrix=imatrix,
        tokens=tokens or (DEFAULT_TOKENS if budget is None else None),
        budget=None if budget is None else parse_time(budget),
        chunks=ChunkSettings(ctx, n_batch=ctx, threads=threads),
        placement=spread.placement(out),
        gpu_layers=gpu_layers(layers, out),
        resume=resume,
    )
    given = [model, text, *([imatrix] if imatrix else [])]
    key = inputs_key(
        [each for each in given if each.is_file()], "sensitivity", ctx, settings.tokens, budget
    )
    if not (force or resume) and _is_unfinished(path):
        raise MinitronError(
            f"an earlier run for {path} was stopped", "--resume continues it; --force starts over"
        )
    if is_up_to_date(path, key, force or resume):
        show_sensitivity(out, path, settings.imatrix_output, read_sensitivity(path), kept=True)
        return
    with out.progress(again="--resume") as listener:
        measured = measure_sensitivity(settings, listener)
    record_inputs([path], key)
    show_sensitivity(out, path, settings.imatrix_output, measured)


def _is_unfinished(path: Path) -> bool:
    from minitron_quant.mixed_precision.sensitivity_file import read_sensitivity

    try:
        return not read_sensitivity(path).complete
    except MinitronError:
        return False
