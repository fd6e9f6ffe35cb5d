"""minitron convert: a checkpoint becomes a GGUF file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from minitron_cli.options.parameters import Force, Json, Quiet, Revision, SourceName, Verbose

EXAMPLES = """minitron convert examples/nano-llama
minitron convert Llama-3.1-Minitron-4B-Width-Base --outtype bf16 -o width.gguf
minitron convert nvidia/Llama-3.1-Minitron-4B-Width-Base --outtype q4_k_m
minitron convert Minitron-4B-Base --dry-run"""


def convert(
    source: SourceName,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file to write; {Model}-{TYPE}.gguf by default."),
    ] = None,
    outtype: Annotated[
        str,
        typer.Option(
            metavar="auto|f32|f16|bf16|q8_0|LEVEL",
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
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Convert a Hugging Face checkpoint to GGUF."""
    from minitron import conversion
    from minitron_cli.inputs import open_checkpoint_source
    from minitron_cli.output import Output
    from minitron_cli.units import parse_size
    from minitron_convert.convert import ConvertSettings

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    limit = parse_size(split_max_size) if split_max_size else 0
    # before anything is downloaded
    conversion.parse_outtype(outtype, vocab_only=vocab_only)
    with (
        out.progress() as listener,
        open_checkpoint_source(source, revision, listener, headers_only=dry_run) as found,
    ):
        settings = ConvertSettings(
            source=found.folder,
            output=output,
            outtype=outtype,
            metadata=metadata,
            vocab_only=vocab_only,
            split_max_size=limit,
            dry_run=dry_run,
            force=force,
            name=found.name,
        )
        result = conversion.convert(settings, listener)
    for note in result.notes:
        out.note(note)
    _show(out, result)


def _show(out: Any, result: Any) -> None:
    from minitron_cli.units import show_size
    from minitron_core.gguf import TYPE

    document = {
        "paths": [str(path) for path in result.paths],
        "model": result.model_name,
        "architecture": result.architecture,
        "outtype": result.outtype,
        "tensors": result.tensors,
        "bytes": result.bytes,
        "memory_bytes": result.memory,
        "notes": list(result.notes),
        "dry_run": result.dry_run,
    }
    facts = f"{result.tensors} tensors, {result.outtype}, {show_size(result.bytes)}"
    paths = ", ".join(map(str, result.paths))
    if not result.dry_run:
        out.result(document, f"wrote {paths} ({facts})")
        return
    specs = result.planned.tensors
    if out.as_json:
        names = ("name", "shape", "type", "bytes")
        rows = [(spec.name, spec.shape, TYPE[spec.type].name, spec.nbytes) for spec in specs]
        plan = [dict(zip(names, row, strict=True)) for row in rows]
        out.document({**document, "plan": plan})
        return
    out.table(
        ["Tensor", "Type", "Shape", "Bytes"],
        [
            [s.name, TYPE[s.type].name, " × ".join(map(str, s.shape)), f"{s.nbytes:,}"]
            for s in specs
        ],
        left=2,
    )
    out.text(f"would write {paths} ({facts}) with about {show_size(result.memory)} of memory")
