"""minitron bench: how fast models process prompts and generate."""

from typing import Annotated, Any

import typer

from minitron_cli.options.generation import DeviceOptions
from minitron_cli.options.parameters import (
    ConsoleOptions,
    ModelPaths,
    TableFormat,
    gpu_layers,
    number_list,
)

EXAMPLES = """minitron bench out/nano-llama-Q4_K_M.gguf
minitron bench out/nano-llama-*.gguf -p 512 -n 0 --format md
minitron bench model-Q4_K_M.gguf --depth 0,4096,16384 --threads 1-8*2
minitron bench model-Q8_0.gguf model-Q4_K_M.gguf --gpu-layers 0,all --json"""


def bench(
    models: ModelPaths,
    prompt: Annotated[
        str, typer.Option("-p", "--n-prompt", help="Tokens of prompts: 512 or 128,512; 0: none.")
    ] = "512",
    length: Annotated[
        str, typer.Option("-n", "--n-gen", help="Tokens to generate: 128 or 64,128; 0: none.")
    ] = "128",
    repetitions: Annotated[
        int, typer.Option("-r", "--repetitions", min=1, help="Runs of each test.")
    ] = 5,
    depth: Annotated[
        str, typer.Option("-d", "--depth", help="Tokens in the cache before: 0 or 0,4096.")
    ] = "0",
    threads: Annotated[
        str, typer.Option("-t", "--threads", help="Threads, or several: 1,2 or 1-16*2.")
    ] = "",
    layers: Annotated[
        str, typer.Option("--gpu-layers", metavar="auto|all|N,...", help="Layers to put on GPUs.")
    ] = "auto",
    batch: Annotated[
        str, typer.Option("-b", "--batch", help="Tokens of a decode, or several.")
    ] = "2048",
    ubatch: Annotated[
        str, typer.Option("-u", "--ubatch", help="Tokens at once on the device, or several.")
    ] = "512",
    cache_type_k: Annotated[
        str, typer.Option(help="Type of the K cache: f16 or f16,q8_0.")
    ] = "f16",
    cache_type_v: Annotated[str, typer.Option(help="Type of the V cache, or several.")] = "f16",
    flash_attn: Annotated[
        str, typer.Option(metavar="auto|on|off,...", help="Flash attention, or several.")
    ] = "auto",
    table_format: TableFormat = "table",
    *,
    spread: DeviceOptions,
    console: ConsoleOptions,
) -> None:
    """Measure tokens per second, as llama-bench does: no tokenizer, no sampler."""
    from minitron import measurement
    from minitron_cli.inputs import local_model, note_missing_gpu
    from minitron_cli.views.bench import show_bench
    from minitron_core.errors import Usage
    from minitron_quant.bench.run import BenchPlan, plan_contexts, plan_tests

    out = console.output(table_format)
    tests = plan_tests(number_list(prompt), number_list(length), number_list(depth))
    if not tests:
        raise Usage("there is nothing to measure", "give -p or -n a number above 0")
    sizes = number_list(batch), number_list(ubatch), number_list(threads) if threads else (None,)
    names = (option.split(",") for option in (cache_type_k, cache_type_v, flash_attn))
    placement = spread.placement(out)
    plan = BenchPlan(
        models=tuple(local_model(model, out) for model in models),
        layers=tuple(gpu_layers(part.strip(), out) for part in layers.split(",")),
        contexts=plan_contexts(*sizes, *names),
        tests=tests,
        repetitions=repetitions,
        placement=placement,
    )
    note_missing_gpu(out)
    rows: list[dict[str, Any]] = []
    try:
        with out.progress() as listener:
            rows.extend(measurement.bench(plan, listener))
    finally:
        # what was measured before a failure or Ctrl-C is worth having
        if rows:
            show_bench(out, rows, table_format)
