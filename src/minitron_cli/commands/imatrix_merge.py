"""minitron imatrix-merge: several importance matrices become one."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import ConsoleOptions, Force

EXAMPLES = """minitron imatrix-merge a.imatrix.gguf b.imatrix.gguf -o both.imatrix.gguf
minitron imatrix-merge old.dat new.gguf -o all.dat"""


def imatrix_merge(
    files: Annotated[list[Path], typer.Argument(metavar="A B...", help="Files of one model.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="The file to write; .dat for llama.cpp's old format."),
    ],
    force: Force = False,
    *,
    console: ConsoleOptions,
) -> None:
    """Merge importance matrices of one model, without the model."""
    from minitron_cli.inputs import refuse_existing
    from minitron_cli.views.imatrix import show_merged
    from minitron_quant.imatrix.files import write_imatrix
    from minitron_quant.imatrix.merge import merge

    out = console.output()
    refuse_existing(output, force)
    matrix = merge(files)
    write_imatrix(output, matrix, "dat" if output.suffix == ".dat" else "gguf")
    show_merged(out, output, matrix)
