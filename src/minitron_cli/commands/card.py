"""minitron card: a model card for the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import Force, Json, Quiet, Verbose

EXAMPLES = """minitron card out
minitron card out --base-model nvidia/Llama-3.1-Minitron-4B-Width-Base --author me
minitron card out --source-card checkpoint/README.md"""


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of GGUF files.")],
    base_model: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="The model that was quantized.")
    ] = None,
    author: Annotated[str | None, typer.Option(help="Who quantized it (quantized_by).")] = None,
    source_card: Annotated[
        Path | None,
        typer.Option(
            metavar="README.md", help="The original's card: license, languages, limits are kept."
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write README.md: the files with what was measured, and which one to choose."""
    from minitron_cli.hub.card import CardSettings, write_card
    from minitron_cli.output import Output

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    path = write_card(CardSettings(folder, base_model, author, source_card, force))
    out.result({"path": str(path)}, f"wrote {path}")
