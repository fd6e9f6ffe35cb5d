"""minitron imatrix: the importance of weights, collected on a calibration text."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.generation import DeviceOptions
from minitron_cli.options.imatrix import CollectOptions
from minitron_cli.options.parameters import (
    ConsoleOptions,
    Force,
    GpuLayers,
    ModelPath,
    Threads,
    gpu_layers,
)
from minitron_core.errors import AlreadyExists, MinitronError, Usage

EXAMPLES = """minitron imatrix nano-llama-F16.gguf -f examples/calibration.txt
minitron imatrix model-F16.gguf -f a.txt -f b.txt --chunks 100 -o model.imatrix.gguf
minitron imatrix model-F16.gguf --synthetic 50000"""


def imatrix(
    model: ModelPath,
    texts: Annotated[
        list[Path] | None,
        typer.Option("-f", "--file", help="A calibration text; may be repeated."),
    ] = None,
    synthetic: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Calibrate on N tokens sampled from the model, kept in {output}.txt.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of --synthetic.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file to write; {Model}.imatrix.gguf."),
    ] = None,
    *,
    collecting: CollectOptions,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="CHUNKS", help="Save this often; by default every ten seconds or so."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was stopped, to the same bytes.")
    ] = False,
    threads: Threads = None,
    layers: GpuLayers = "auto",
    force: Force = False,
    spread: DeviceOptions,
    console: ConsoleOptions,
) -> None:
    """Collect an importance matrix on a text, equal to llama-imatrix's."""
    from minitron.calibration import imatrix as collect_imatrix
    from minitron.calibration import imatrix_key
    from minitron_cli.inputs import (
        check_output,
        folder_for_results,
        is_up_to_date,
        local_model,
    )
    from minitron_cli.views.imatrix import show_collected
    from minitron_core.made_from import record_inputs
    from minitron_quant.imatrix.collect import Collected
    from minitron_quant.imatrix.files import read_imatrix
    from minitron_quant.imatrix.synthetic_text import SyntheticTextSettings
    from minitron_quant.model_files import open_model_files
    from minitron_quant.quantize.prepare import model_name

    out = console.output()
    check_output(output)
    found = local_model(model, out)
    file_format = collecting.file_format
    path = output or folder_for_results(model) / f"{model_name(found)}.imatrix.{file_format}"
    if synthetic is None and not texts:
        raise Usage("there is no text to calibrate on", "give -f TEXT, or --synthetic 50000")
    settings = collecting.settings(tuple(texts or ()), threads)
    files = [shard.path for shard in open_model_files(found)]
    key = imatrix_key(files, settings, file_format, synthetic and (synthetic, seed))
    if is_up_to_date(path, key, force):
        show_collected(out, path, Collected(read_imatrix(path), None, 0, ""), kept=True)
        return
    _refuse_unfinished(path, decided=resume or force)
    generated = None
    if synthetic is not None:
        _refuse_synthetic_text(path, keep=resume, force=force)
        generated = SyntheticTextSettings(synthetic, collecting.ctx, seed, threads)
    with out.progress(again="--resume") as listener:
        collected = collect_imatrix(
            found,
            path,
            settings,
            synthetic=generated,
            resume="continue" if resume else "restart",
            save_every=save_every,
            placement=spread.placement(out),
            gpu_layers=gpu_layers(layers, out),
            file_format=file_format,
            progress=listener,
        )
    record_inputs([path], key)
    show_collected(out, path, collected)


def _refuse_unfinished(path: Path, *, decided: bool) -> None:
    """Stop before an unfinished run is thrown away without --force."""
    from minitron_quant.imatrix.state import saved_chunks, state_path

    chunks = None if decided else saved_chunks(state_path(path))
    if chunks is not None:
        raise MinitronError(
            f"an earlier run for {path} was stopped after {chunks} chunks",
            "--resume continues it; --force starts over",
        )


def _refuse_synthetic_text(output: Path, *, keep: bool, force: bool) -> None:
    """Stop before a text that is there would be replaced without --force."""
    from minitron_quant.imatrix.synthetic_text import synthetic_text_path

    path = synthetic_text_path(output)
    if path.exists() and not (keep or force):
        raise AlreadyExists(f"{path} exists", f"-f {path.name} uses it; --force writes a new one")
