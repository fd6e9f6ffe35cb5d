"""minitron convert: a checkpoint becomes a GGUF file."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.completion import complete_outtype
from minitron_cli.options.parameters import (
    ConsoleOptions,
    Force,
    Revision,
    SourceName,
)
from minitron_convert.outtypes import OUTTYPES

EXAMPLES = """minitron convert examples/nano-llama
minitron convert Llama-3.1-Minitron-4B-Width-Base --outtype bf16 -o width.gguf
minitron convert nvidia/Llama-3.1-Minitron-4B-Width-Base --outtype q4_k_m
minitron convert Minitron-4B-Base --dry-run"""


def convert(
    source: SourceName,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The file to write, or its folder; {Model}-{TYPE}.gguf."
        ),
    ] = None,
    outtype: Annotated[
        str,
        typer.Option(
            metavar="|".join((*OUTTYPES, "LEVEL")),
            autocompletion=complete_outtype,
            help="Type of the matrices; auto keeps the checkpoint's 16-bit type. A level that "
            "needs no importance matrix, such as q4_k_m, is made without a file between.",
        ),
    ] = "auto",
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Shards of at most this size, such as 4G.")
    ] = None,
    vocab_only: Annotated[bool, typer.Option("--vocab-only", help="No weights.")] = False,
    revision: Revision = None,
    metadata: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Values for general.* keys.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    force: Force = False,
    *,
    console: ConsoleOptions,
) -> None:
    """Convert a Hugging Face checkpoint to GGUF."""
    from minitron import conversion
    from minitron_cli.inputs import folder_for_results, open_checkpoint_source
    from minitron_cli.units import parse_size
    from minitron_cli.views.convert import show_conversion
    from minitron_convert.convert import ConvertSettings

    out = console.output()
    limit = parse_size(split_max_size) if split_max_size else 0
    # before anything is downloaded
    conversion.parse_outtype(outtype, vocab_only=vocab_only)
    with (
        out.progress() as listener,
        open_checkpoint_source(source, revision, listener, headers_only=dry_run) as found,
    ):
        settings = ConvertSettings(
            source=found.folder,
            output=output or folder_for_results(Path(source)),
            outtype=outtype,
            metadata=metadata,
            vocab_only=vocab_only,
            split_max_size=limit,
            dry_run=dry_run,
            force=force,
            name=found.name,
        )
        result = conversion.convert(settings, listener)
    show_conversion(out, result)
