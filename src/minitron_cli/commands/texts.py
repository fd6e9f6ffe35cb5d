"""minitron texts: what tables are measured on."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import ConsoleOptions, Force

EXAMPLES = """minitron texts
minitron texts wikitext2 calibration
minitron texts all -d texts"""


def texts(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Texts to fetch, or all; none lists them."),
    ] = None,
    directory: Annotated[
        Path, typer.Option("-d", "--directory", help="The folder to write them to.")
    ] = Path(),
    force: Force = False,
    *,
    console: ConsoleOptions,
) -> None:
    """Fetch texts to calibrate and measure on: WikiText-2, HellaSwag, a calibration text.

    Each has a known SHA-256, so that everybody measures on the same bytes.
    """
    from minitron_cli.hub.texts import TEXTS, fetch, texts_named
    from minitron_cli.views.texts import show_fetched, show_texts

    out = console.output()
    if not names:
        show_texts(out, TEXTS)
        return
    wanted = texts_named(names)
    show_fetched(out, [fetch(text, directory, force=force) for text in wanted])
