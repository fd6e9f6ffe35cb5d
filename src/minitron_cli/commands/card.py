"""minitron card: a model card for the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import ConsoleOptions, Force

EXAMPLES = """minitron card out
minitron card out --base-model nvidia/Llama-3.1-Minitron-4B-Width-Base --author me
minitron card out --repo me/nano-llama-GGUF --source-card checkpoint/README.md"""


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
    repository: Annotated[
        str | None,
        typer.Option("--repo", metavar="OWNER/NAME", help="Where the folder will be on the Hub."),
    ] = None,
    force: Force = False,
    *,
    console: ConsoleOptions,
) -> None:
    """Write README.md: the files with what was measured, and which one to choose.

    Made again, it keeps the sections that you added, and what you wrote into its head.
    """
    from minitron_cli.hub.card import write_card
    from minitron_cli.hub.card_head import CardSettings

    out = console.output()
    settings = CardSettings(folder, base_model, author, source_card, repository, force)
    with out.progress() as listener:
        card = write_card(settings, listener)
    for warning in card.warnings:
        out.note(warning)
    out.result({"path": str(card.path), "warnings": card.warnings}, f"wrote {card.path}")
