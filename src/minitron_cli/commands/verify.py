"""minitron verify: a GGUF file is what its checkpoint says, or files are what a manifest says."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import Json, Quiet, Revision, Verbose

EXAMPLES = """minitron verify examples/nano-llama Nano-Llama-8.0M-BF16.gguf
minitron verify nvidia/Minitron-4B-Base minitron-4b-Q4_K_M.gguf --no-logits --json
minitron verify --manifest out/nano-llama.manifest.json"""


def verify(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE", help="A checkpoint folder, or owner/name[@revision] on the Hub."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="A .gguf file, or owner/name[:LEVEL] on the Hub."),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Check the files of a manifest by their SHA-256."),
    ] = None,
    revision: Revision = None,
    logits: Annotated[
        bool,
        typer.Option(
            help="Compare logits with transformers where it is installed; it takes four bytes "
            "of memory for every weight."
        ),
    ] = True,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Compare a GGUF file with its checkpoint: keys, tensors, values, token ids, logits."""
    from minitron_cli.output import Output
    from minitron_cli.views.verify import against_checkpoint, against_manifest
    from minitron_core.errors import Usage

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    if manifest is not None and source is None:
        raise typer.Exit(against_manifest(out, manifest))
    if manifest is not None or source is None or model is None:
        raise Usage("give SOURCE and MODEL, or --manifest FILE alone")
    raise typer.Exit(against_checkpoint(out, source, revision, model, logits))
