"""minitron pull: a model from the Hub, before it is needed."""

from typing import Annotated

import typer

from minitron_cli.options.parameters import ConsoleOptions

EXAMPLES = """minitron pull someone/Minitron-4B-Base-GGUF:Q4_K_M
minitron pull hf.co/someone/Minitron-4B-Base-GGUF:Q4_K_M
minitron pull nvidia/Minitron-4B-Base"""


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="OWNER/NAME[:LEVEL]",
            help="A GGUF model or a checkpoint on the Hub; hf.co/owner/name works, too.",
        ),
    ],
    *,
    console: ConsoleOptions,
) -> None:
    """Download a model into the Hub's cache, where every command finds it under the same name.

    What is there is not downloaded again.
    """
    from minitron_cli.hub.pull import pull_model
    from minitron_cli.views.pull import show_pulled

    out = console.output()
    with out.progress() as listener:
        pulled = pull_model(name, listener)
    show_pulled(out, pulled)
