"""minitron convert: a checkpoint becomes a GGUF file."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from minitron_cli.parameters import Force, Json, Quiet, Verbose

EXAMPLES = """minitron convert examples/nano-llama
minitron convert Llama-3.1-Minitron-4B-Width-Base --outtype bf16 -o width.gguf
minitron convert Minitron-4B-Base --dry-run"""


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A checkpoint folder.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file to write; {Model}-{TYPE}.gguf by default."),
    ] = None,
    outtype: Annotated[
        Literal["auto", "f32", "f16", "bf16", "q8_0"],
        typer.Option(help="Type of the matrices; auto keeps the checkpoint's 16-bit type."),
    ] = "auto",
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Shards of at most this size, such as 4G.")
    ] = None,
    vocab_only: Annotated[bool, typer.Option("--vocab-only", help="No weights.")] = False,
    metadata: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Values for general.* keys.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Convert a Hugging Face checkpoint to GGUF."""
    from minitron_cli.output import Output
    from minitron_cli.sizes import parse_size, show_size
    from minitron_convert.convert import ConvertSettings
    from minitron_convert.convert import convert as run

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    settings = ConvertSettings(
        source=source,
        output=output,
        outtype=outtype,
        metadata=metadata,
        vocab_only=vocab_only,
        split_max_size=parse_size(split_max_size) if split_max_size else 0,
        dry_run=dry_run,
        force=force,
    )
    with out.progress() as listener:
        result = run(settings, listener)
    for note in result.notes:
        out.note(note)
    document = {
        "paths": [str(path) for path in result.paths],
        "model": result.model_name,
        "architecture": result.architecture,
        "outtype": result.outtype,
        "tensors": result.tensors,
        "bytes": result.bytes,
        "dry_run": result.dry_run,
    }
    verb = "would write" if result.dry_run else "wrote"
    facts = f"{result.tensors} tensors, {result.outtype}, {show_size(result.bytes)}"
    out.result(document, f"{verb} {', '.join(map(str, result.paths))} ({facts})")
