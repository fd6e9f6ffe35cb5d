"""minitron push: upload a folder of levels to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import ConsoleOptions

EXAMPLES = """minitron card out && minitron push out me/nano-llama-GGUF
minitron push out me/nano-llama-GGUF --dry-run
minitron push out me/nano-llama-GGUF --private"""


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of GGUF files.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private, if new.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="A branch.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what is missing.")] = False,
    *,
    console: ConsoleOptions,
) -> None:
    """Upload a folder with its card; only files that are new or changed, resumable."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from minitron_cli.hub import card, upload
    from minitron_cli.views.push import show_uploads
    from minitron_core.errors import Usage

    out = console.output()
    if repository.count("/") != 1:
        raise Usage(f"{repository} is not the name of a repository", "write OWNER/NAME")
    uploads = upload.plan_push(folder, repository, revision)
    made = f"minitron card {folder} --repo {repository}"
    if not (folder / card.NAME).exists():
        out.note(f"{folder} has no model card: {made} makes one")
    elif not card.names(folder / card.NAME, repository):
        out.note(f"the card does not say how to use {repository}: {made}")
    url = None
    if not dry_run:
        if out.quiet or not out.interactive:
            disable_progress_bars()
        url = upload.push(uploads, repository, out.note, private=private, revision=revision)
    show_uploads(out, repository, url, uploads)
