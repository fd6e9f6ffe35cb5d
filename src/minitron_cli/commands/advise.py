"""minitron advise: which level fits into memory."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import CacheType, ConsoleOptions

EXAMPLES = """minitron advise out --vram 6
minitron advise examples/nano-llama --vram 6G
minitron advise someone/Minitron-4B-Base-GGUF --vram 6GB
minitron advise model-F16.gguf --vram 8G --ctx 32768 --ram 16G
minitron advise out --vram 4G --cache-type-k q8_0 --cache-type-v q8_0 --json"""


def advise(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|DIR",
            help="A folder of levels, a full-precision file, a checkpoint folder, or owner/name "
            "of a checkpoint or of levels on the Hub. Only headers are read.",
        ),
    ],
    vram: Annotated[
        str, typer.Option(metavar="SIZE", help="The GPU's memory: 6, 6G, 512M; 0: none.")
    ],
    ctx: Annotated[
        int,
        typer.Option("--ctx", "-c", min=1, envvar="MINITRON_CTX", help="Tokens of the context."),
    ] = 8192,
    ram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The machine's memory (default: what is free)."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Measured quality (default: DIR/report.json)."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Tokens of a decode.")] = 2048,
    cache_type_k: Annotated[
        CacheType, typer.Option(envvar="MINITRON_CACHE_TYPE_K", help="Type of the KV cache's keys.")
    ] = "f16",
    cache_type_v: Annotated[
        CacheType,
        typer.Option(envvar="MINITRON_CACHE_TYPE_V", help="Type of the KV cache's values."),
    ] = "f16",
    reserve: Annotated[
        str,
        typer.Option(metavar="SIZE", help="GPU memory to keep free, as auto does."),
    ] = "1G",
    *,
    console: ConsoleOptions,
) -> None:
    """Show which file to take for a GPU: weights, KV cache and compute buffers counted.

    By the rule of --gpu-layers auto, so that generate does what this says.
    """
    from minitron_cli.advise_source import open_candidates
    from minitron_cli.units import parse_memory
    from minitron_cli.views.advise import show_advice
    from minitron_core.cpu_limits import available_memory
    from minitron_engine.llama.settings import ContextSettings
    from minitron_quant import advise as library

    out = console.output()
    budget = library.Budget(
        parse_memory(vram),
        available_memory() if ram is None else parse_memory(ram),
        parse_memory(reserve),
    )
    settings = ContextSettings(ctx, batch, cache_type_k=cache_type_k, cache_type_v=cache_type_v)
    known = table or (model if model.is_dir() else model.parent) / "report.json"
    quality = library.measured(known) if table or known.is_file() else {}
    with open_candidates(model, out) as found:
        fits = found.named(library.advise(found.path, settings, budget, quality))
    show_advice(out, fits, budget, ctx, model)
