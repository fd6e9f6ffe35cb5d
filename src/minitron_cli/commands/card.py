"""minitron card: a model card for the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import ConsoleOptions, Force

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
    *,
    console: ConsoleOptions,
) -> None:
    """Write README.md: the files with what was measured, and which one to choose."""
    from minitron_cli.hub.card import CardSettings, write_card

    out = console.output()
    path = write_card(CardSettings(folder, base_model, author, source_card, force))
    out.result({"path": str(path)}, f"wrote {path}")
