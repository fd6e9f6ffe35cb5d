"""minitron inspect: what is in a GGUF file."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import ConsoleOptions, ModelPath

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
    *,
    console: ConsoleOptions,
) -> None:
    """Show what is in a GGUF file, from its header alone; or how two of them differ."""
    from contextlib import ExitStack

    from minitron_cli.inputs import local_model, model_header
    from minitron_cli.views.inspect import show_description, show_difference
    from minitron_core.errors import Usage
    from minitron_quant.inspect.description import describe
    from minitron_quant.inspect.difference import compare

    out = console.output()
    if data and other is None:
        raise Usage("--data compares two models", "give the other one too")
    # headers are enough, unless hashes or the weights' bytes are asked for
    models = [model] if other is None else [model, other]
    if hashes or data:
        models = [local_model(each, out) for each in models]
    with ExitStack() as stack:
        paths = [stack.enter_context(model_header(each)) for each in models]
        if other is None:
            show_description(out, describe(paths[0], tensors, hashes))
        else:
            show_difference(out, compare(*paths, with_data=data))
