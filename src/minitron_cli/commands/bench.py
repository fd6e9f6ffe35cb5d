"""minitron bench: how fast models process prompts and generate."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from minitron_cli.options.completion import complete_model
from minitron_cli.options.parameters import Json, Quiet, Verbose

EXAMPLES = """minitron bench out/nano-llama-Q4_K_M.gguf
minitron bench out/nano-llama-*.gguf -p 512 -n 0 --format md
minitron bench model-Q4_K_M.gguf --depth 0,4096,16384 --threads 1-8*2
minitron bench model-Q8_0.gguf model-Q4_K_M.gguf --gpu-layers 0,all --json"""

# columns that are shown only where their values differ, by the fields of the rows
SETTINGS = {
    "n_threads": "Threads",
    "n_gpu_layers": "GPU layers",
    "n_batch": "Batch",
    "n_ubatch": "Micro-batch",
    "type_k": "K",
    "type_v": "V",
    "flash_attn": "Flash",
}


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="GGUF files, or owner/name[:LEVEL] on the Hub.",
            autocompletion=complete_model,
        ),
    ],
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
    table_format: Annotated[
        Literal["table", "md", "csv", "json"], typer.Option("--format", help="How to show it.")
    ] = "table",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure tokens per second, as llama-bench does: no tokenizer, no sampler."""
    from minitron_cli.inputs import local_model, tell_missing_gpu
    from minitron_cli.output import Output
    from minitron_core.errors import Usage
    from minitron_quant.bench.run import BenchPlan, numbers, plan_contexts, plan_layers, plan_tests

    as_json = as_json or table_format == "json"
    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    tests = plan_tests(numbers(prompt), numbers(length), numbers(depth))
    if not tests:
        raise Usage("there is nothing to measure", "give -p or -n a number above 0")
    sizes = numbers(batch), numbers(ubatch), numbers(threads) if threads else (None,)
    names = (option.split(",") for option in (cache_type_k, cache_type_v, flash_attn))
    plan = BenchPlan(
        models=tuple(local_model(model, out) for model in models),
        layers=plan_layers(layers),
        contexts=plan_contexts(*sizes, *names),
        tests=tests,
        repetitions=repetitions,
    )
    tell_missing_gpu(out)
    rows: list[dict[str, Any]] = []
    try:
        with out.progress() as listener:
            rows.extend(plan.rows(listener))
    finally:
        # what was measured before a failure or Ctrl-C is worth having
        if rows:
            _show(out, rows, table_format)


def _show(out: Any, rows: list[dict[str, Any]], table_format: Any) -> None:
    if out.as_json:
        out.document(rows)
    elif table_format == "csv":
        fields = [field for field in rows[0] if not field.startswith("samples")]
        cells = [["" if row[f] is None else str(row[f]) for f in fields] for row in rows]
        out.table(fields, cells, "csv")
    else:
        _show_table(out, rows, table_format)


def _show_table(out: Any, rows: list[dict[str, Any]], table_format: Any) -> None:
    from minitron_cli.units import show_size

    varied = [field for field in SETTINGS if len({row[field] for row in rows}) > 1]
    energy = any(row["joules_per_token"] is not None for row in rows)
    headers = [
        "Model",
        "Size",
        *(SETTINGS[field] for field in varied),
        "Test",
        "t/s",
        "±",
        "Memory",
    ]
    cells = [
        [
            Path(row["model_filename"]).name,
            show_size(row["model_size"]),
            *(str(row[field]) for field in varied),
            row["test"],
            f"{row['avg_ts']:.2f}",
            f"{row['stddev_ts']:.2f}",
            show_size(row["peak_memory_bytes"]),
            *([f"{row['joules_per_token'] or float('nan'):.3f}"] if energy else []),
        ]
        for row in rows
    ]
    out.table(headers + ["J/token"] * energy, cells, table_format)
    backend = rows[0]["gpu_info"] or rows[0]["cpu_info"]
    threads = "" if "n_threads" in varied else f"; {rows[0]['n_threads']} threads"
    out.note(f"{rows[0]['backends']}: {backend}{threads}")
