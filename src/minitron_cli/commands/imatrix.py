"""minitron imatrix: what a calibration text says about the importance of weights."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

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

EXAMPLES = """minitron imatrix nano-llama-F16.gguf -f examples/calibration.txt
minitron imatrix model-F16.gguf -f a.txt -f b.txt --chunks 100 -o model.imatrix.gguf
minitron imatrix model-F16.gguf --self 50000"""


def imatrix(
    model: ModelPath,
    texts: Annotated[
        list[Path] | None,
        typer.Option("-f", "--file", help="A calibration text; may be repeated."),
    ] = None,
    self_tokens: Annotated[
        int | None,
        typer.Option(
            "--self",
            metavar="N",
            min=1,
            help="Without a text: calibrate on N tokens that the model writes itself. They stay "
            "beside the output, as {output}.txt.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="For --self.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file to write; {Model}.imatrix.gguf by default."),
    ] = None,
    chunks: Annotated[
        int | None, typer.Option(min=1, help="At most this many chunks in all.")
    ] = None,
    ctx: Annotated[int, typer.Option("--ctx", "-c", min=16, help="Tokens of a chunk.")] = 512,
    batch: Annotated[int, typer.Option("--batch", "-b", min=16, help="Tokens of a decode.")] = 2048,
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Also for output.weight.")
    ] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Special tokens in the text are tokens.")
    ] = False,
    file_format: Annotated[
        Literal["gguf", "dat"], typer.Option("--format", help="llama.cpp's new or old format.")
    ] = "gguf",
    sums: Annotated[
        Literal["float32", "float64"],
        typer.Option(
            "--sums",
            help="float32 adds as llama-imatrix does, which drifts on long texts (by up to 1.5e-4 "
            "of a sum on the bundled model); float64 is exact.",
        ),
    ] = "float32",
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="Only what llama-imatrix writes, to the byte: no means of the inputs, no hashes "
            "of model and texts.",
        ),
    ] = False,
    ppl: Annotated[
        bool,
        typer.Option(
            "--ppl",
            help="Also the perplexity of the text, as llama-perplexity has it; costs the "
            "vocabulary matrix.",
        ),
    ] = False,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="CHUNKS", help="Save what is done this often; every minute by default."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a killed run was; to the same bytes.")
    ] = False,
    threads: Threads = None,
    layers: GpuLayers = "auto",
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Calibrate: collect an importance matrix with a text, equal to llama-imatrix's."""
    from minitron_cli.calibration import SelfText, calibration_texts, describe, refuse_unfinished
    from minitron_cli.inputs import folder_for_results, local_model, open_checked
    from minitron_cli.output import Output
    from minitron_cli.output_checks import refuse_existing
    from minitron_quant.chunking import ChunkSettings
    from minitron_quant.imatrix.collect import (
        CollectSettings,
        ResumePolicy,
        calibrate,
        remove_state,
    )
    from minitron_quant.imatrix.files import write_imatrix
    from minitron_quant.imatrix.synthetic_text import SLOTS, SyntheticTextSettings
    from minitron_quant.quantize.prepare import model_name

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    found = local_model(model, out)
    path = output or folder_for_results(model) / f"{model_name(found)}.imatrix.{file_format}"
    refuse_existing(path, force)
    refuse_unfinished(path, resume or force)
    own = SelfText(self_tokens, path, resume, force) if self_tokens else None
    chosen = calibration_texts(texts or [], own)
    settings = CollectSettings(
        chosen,
        ChunkSettings(ctx, batch, chunks, threads, parse_special),
        process_output,
        plain or file_format == "dat",
        sums,
        ppl,
    )
    context = settings.chunks.context()
    if own is not None:
        context = replace(context, n_ctx=max(ctx * SLOTS, context.n_ctx))
    keep = ResumePolicy(path, "continue" if resume else "restart", save_every)
    with (
        out.progress() as listener,
        open_checked(found, gpu_layers(layers), context) as loaded,
    ):
        if own is not None:
            own.write(loaded, SyntheticTextSettings(own.tokens, ctx, seed, threads), listener)
        collected = calibrate(loaded, settings, listener, keep)
        device = loaded.device
    write_imatrix(path, collected.matrix, file_format)
    remove_state(path)
    describe(path, collected, device, out)
