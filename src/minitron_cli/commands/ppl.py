"""minitron ppl: perplexity of one model, or a table of many."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from minitron_cli.options.generation import DeviceOptions
from minitron_cli.options.parameters import (
    ConsoleOptions,
    GpuLayers,
    ModelPaths,
    TableFormat,
    Threads,
    UBatch,
    gpu_layers,
)

EXAMPLES = """minitron ppl out/nano-llama-Q4_K_M.gguf -f examples/held-out.txt
minitron ppl out/nano-llama-*.gguf -f examples/held-out.txt --format md
minitron ppl out/*.gguf --reference nano-llama-F16.gguf -f examples/held-out.txt
minitron ppl a-Q4_0.gguf a-IQ4_XS.gguf -f wiki.test.raw --compare
minitron ppl out/*.gguf --reference big-F16.gguf -f wiki.test.raw --resume rows.sqlite
minitron ppl model-Q4_K_M.gguf -f wiki.test.raw --chunks 50 --json"""


def ppl(
    models: ModelPaths,
    text: Annotated[Path, typer.Option("-f", "--file", help="The text to predict.")],
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="The full model: adds accuracy and divergence from it."),
    ] = None,
    ctx: Annotated[int, typer.Option("--ctx", "-c", min=8, help="Tokens of a chunk.")] = 512,
    chunks: Annotated[int | None, typer.Option(min=1, help="At most this many chunks.")] = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=8, help="Tokens of a decode.")] = 2048,
    ubatch: UBatch = 512,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Let chunks overlap, and score the last N tokens of each."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", metavar="STATE", help="Keep scores in this file, and continue from it."
        ),
    ] = None,
    compare: Annotated[
        Literal["neighbors", "all"] | None,
        typer.Option(
            "--compare",
            help="Paired differences with 95 % intervals: from the reference and the next larger "
            "file (--compare alone), or of all pairs.",
        ),
    ] = None,
    threads: Threads = None,
    layers: GpuLayers = "auto",
    table_format: TableFormat = "table",
    *,
    spread: DeviceOptions,
    console: ConsoleOptions,
) -> None:
    """Measure perplexity, to four decimals as llama-perplexity does.

    With --stride N every token after the first window is scored once, with at least ctx − N tokens
    before it, and the result has an error; llama-perplexity --ppl-stride has neither: it widens
    the windows, and puts BOS where it has no effect.
    """
    from minitron.measurement import perplexity
    from minitron_cli.inputs import check_output, local_model, local_models
    from minitron_cli.views.perplexity import measured_document, row_line, show_measured
    from minitron_core.progress import Event
    from minitron_quant.chunking import ChunkSettings
    from minitron_quant.perplexity.paired import all_pairs, compare_pairs, nearest_pairs
    from minitron_quant.perplexity.settings import MeasureSettings
    from minitron_quant.perplexity.table import mark_dominated

    out = console.output(table_format)
    check_output(resume)
    placement = spread.placement(out)
    settings = MeasureSettings(
        local_models(models, out),
        text,
        ChunkSettings(ctx, batch, chunks, threads, stride=stride, n_ubatch=ubatch),
        gpu_layers(layers, out),
        local_model(reference, out) if reference else None,
        resume,
        placement=placement,
    )
    rows = []
    lost = "" if resume else "no scores are kept; with --resume STATE they are"
    with out.progress(lost=lost) as listener:
        for row in perplexity(settings, listener):
            rows.append(row)
            listener(Event("perplexity", finished=row_line(row)))
    rows = mark_dominated(rows)
    differences = None
    if compare:
        first = rows[0] if settings.reference else None
        pairs = all_pairs(rows) if compare == "all" else nearest_pairs(rows, first)
        differences = compare_pairs(pairs)
    if out.as_json:
        out.document(measured_document(text, ctx, rows, differences))
    else:
        show_measured(out, rows, table_format, differences)
