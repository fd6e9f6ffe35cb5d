"""minitron imatrix-stats: what an importance matrix says about each weight."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import ConsoleOptions

EXAMPLES = """minitron imatrix-stats nano-llama.imatrix.gguf
minitron imatrix-stats nano-llama.imatrix.gguf --json"""


def imatrix_stats(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An importance matrix.")],
    *,
    console: ConsoleOptions,
) -> None:
    """Show the statistics of an importance matrix by weight and by layer."""
    from minitron_cli.views.imatrix import show_statistics
    from minitron_quant.imatrix.files import read_imatrix

    out = console.output()
    show_statistics(out, read_imatrix(file))
