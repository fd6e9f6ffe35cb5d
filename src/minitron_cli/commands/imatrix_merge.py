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
    from minitron_cli.inputs import is_up_to_date
    from minitron_cli.views.imatrix import show_merged
    from minitron_core.made_from import inputs_key, record_inputs
    from minitron_quant.imatrix.files import read_imatrix, write_imatrix
    from minitron_quant.imatrix.merge import merge

    out = console.output()
    key = inputs_key([path for path in files if path.is_file()], "imatrix-merge")
    if is_up_to_date(output, key, force):
        show_merged(out, output, read_imatrix(output), kept=True)
        return
    matrix = merge(files)
    write_imatrix(output, matrix, "dat" if output.suffix == ".dat" else "gguf")
    record_inputs([output], key)
    show_merged(out, output, matrix)
