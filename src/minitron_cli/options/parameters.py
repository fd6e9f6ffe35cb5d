"""Options that several commands share, and their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from minitron_cli.options.completion import complete_model
from minitron_cli.options.groups import option_group
from minitron_core.errors import Usage
from minitron_core.quoting import quoted
from minitron_engine.llama.settings import CACHE_TYPES, FLASH_ATTENTION, ContextSettings

if TYPE_CHECKING:
    from minitron_cli.output import Output
    from minitron_engine.llama.settings import GpuLayers as GpuLayersValue

TableFormat = Annotated[
    Literal["table", "md", "csv", "json"], typer.Option("--format", help="Form of the result.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show llama.cpp's own log.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only results and errors.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        envvar="MINITRON_THREADS",
        help="Threads; by default one per allowed processor.",
    ),
]
GpuLayers = Annotated[
    str,
    typer.Option(
        "--gpu-layers",
        metavar="auto|all|N",
        envvar="MINITRON_GPU_LAYERS",
        help="Layers to put on GPUs.",
    ),
]
# choices that the engine's tables know, which a type checker does not
if TYPE_CHECKING:
    CacheType = str
    FlashAttention = str
else:
    CacheType, FlashAttention = Literal[tuple(CACHE_TYPES)], Literal[tuple(FLASH_ATTENTION)]
ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A .gguf file (a first shard stands for all), or owner/name[:LEVEL] on the Hub.",
        autocompletion=complete_model,
    ),
]
ModelOrCheckpoint = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A .gguf file, a checkpoint folder, or owner/name[:LEVEL] of either on the Hub.",
        autocompletion=complete_model,
    ),
]
ModelPaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="MODEL...",
        help="GGUF files, or owner/name[:LEVEL] on the Hub.",
        autocompletion=complete_model,
    ),
]
SourceName = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A checkpoint folder, or owner/name[@revision] on the Hub."
    ),
]
Revision = Annotated[
    str | None, typer.Option(metavar="REV", help="A branch, tag or commit of SOURCE on the Hub.")
]


UBatch = Annotated[
    int, typer.Option("--ubatch", min=1, help="Tokens of a decode at once on the device.")
]


@option_group
class ConsoleOptions:
    """What every command takes: how it talks."""

    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False
    verbose: Verbose = False
    quiet: Quiet = False
    progress: Annotated[
        Literal["auto", "json", "none"],
        typer.Option(
            "--progress",
            envvar="MINITRON_PROGRESS",
            help="json: events as JSON lines on stderr, for programs.",
        ),
    ] = "auto"

    def output(self, table_format: str = "table") -> Output:
        """The command's output; --format json is --json."""
        from minitron_cli.output import Output

        as_json = self.as_json or table_format == "json"
        return Output(
            verbose=self.verbose, quiet=self.quiet, as_json=as_json, progress=self.progress
        )


@option_group
class RuntimeOptions:
    """How a model runs."""

    layers: GpuLayers = "auto"
    cache_type_k: Annotated[
        CacheType,
        typer.Option("--cache-type-k", envvar="MINITRON_CACHE_TYPE_K", help="Type of the K cache."),
    ] = "f16"
    cache_type_v: Annotated[
        CacheType,
        typer.Option("--cache-type-v", envvar="MINITRON_CACHE_TYPE_V", help="Type of the V cache."),
    ] = "f16"
    flash_attn: Annotated[FlashAttention, typer.Option("--flash-attn", help="Flash attention.")] = (
        "auto"
    )
    ubatch: UBatch = 512
    threads: Threads = None

    def context(
        self, n_ctx: int | None, n_batch: int, n_outputs: int | None = None
    ) -> ContextSettings:
        """The settings of a context; without n_ctx its size is chosen later."""

        return ContextSettings(
            n_ctx=n_ctx or 0,
            n_batch=n_batch,
            n_ubatch=self.ubatch,
            n_outputs=n_outputs,
            threads=self.threads,
            flash_attention=self.flash_attn,
            cache_type_k=self.cache_type_k,
            cache_type_v=self.cache_type_v,
        )


_RANGE = r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?"
_MOST_NUMBERS = 1000


def number_list(text: str) -> tuple[int, ...]:
    """Numbers as llama-bench takes them: 1,2 or 1-4 or 512-4096*2 or 0-1024+256."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(_RANGE, part.strip())
        if match is None:
            raise Usage(f"{quoted(part)} is neither a number nor a range such as 1-8*2")
        first, last = int(match[1]), int(match[2] or match[1])
        step = int(match[4] or 1)
        while first <= last and len(found) < _MOST_NUMBERS:
            found.append(first)
            following = first * step if match[3] == "*" else first + step
            if following <= first:
                raise Usage(f"the range {part} does not advance")
            first = following
    return tuple(found)


def gpu_layers(text: str, out: Output) -> GpuLayersValue:
    """`auto`, `all`, or a number of layers; a warning where there is no GPU for a number or all."""
    # llama.cpp's numbers for the words
    if text in ("auto", "-1"):
        return "auto"
    text = "all" if text == "-2" else text
    if text != "all" and not text.isdecimal():
        raise Usage(f"{quoted(text)} is neither auto nor all nor a number of layers")
    layers: GpuLayersValue = "all" if text == "all" else int(text)
    if layers:
        from minitron_engine.llama import devices

        if not devices.gpus():
            reason = devices.missing_gpu() or "llama.cpp finds no GPU"
            out.note(f"warning: --gpu-layers {text}: {reason}; the CPU computes all layers")
    return layers
