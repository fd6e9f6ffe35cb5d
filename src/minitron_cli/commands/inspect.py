"""minitron inspect: what is in a GGUF file."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import Json, ModelPath, Quiet, Verbose

EXAMPLES = """minitron inspect out/nano-llama-Q4_K_M.gguf
minitron inspect out/nano-llama-Q4_K_M.gguf --tensors
minitron inspect someone/Minitron-4B-Base-GGUF:Q4_K_M
minitron inspect model-00001-of-00002.gguf --json
minitron inspect owner/name:Q4_K_M
minitron inspect out/nano-llama-Q4_K_S.gguf out/nano-llama-Q4_K_M.gguf"""


def inspect(
    model: ModelPath,
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="Show how this one differs from MODEL.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    hashes: Annotated[bool, typer.Option("--hash", help="Also the SHA-256 of each file.")] = False,
    data: Annotated[
        bool, typer.Option("--data", help="With OTHER: compare the weights' bytes too.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show what is in a GGUF file, from its header alone; or how two of them differ."""
    from minitron_cli.output import Output
    from minitron_cli.views.inspect import show_description, show_difference
    from minitron_core.errors import Usage

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    if data and other is None:
        raise Usage("--data compares two models", "give the other one too")
    if other is None:
        show_description(out, model, tensors, hashes)
    else:
        show_difference(out, model, other, data)
