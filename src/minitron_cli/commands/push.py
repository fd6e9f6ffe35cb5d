"""minitron push: upload a folder of levels to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.parameters import Json, Quiet, Verbose

EXAMPLES = """minitron card out && minitron push out me/nano-llama-GGUF
minitron push out me/nano-llama-GGUF --dry-run
minitron push out me/nano-llama-GGUF --private"""


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of GGUF files.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private, if new.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="A branch.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what is missing.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Upload a folder with its card; only files that are new or changed, resumable."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from minitron_cli.hub import card
    from minitron_cli.hub import upload as publishing
    from minitron_cli.output import Output
    from minitron_cli.units import show_size
    from minitron_core.errors import Usage

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    if repository.count("/") != 1:
        raise Usage(f"{repository} is no name on the Hub", "write OWNER/NAME")
    uploads = publishing.plan_push(folder, repository, revision)
    if not (folder / card.NAME).exists():
        out.note(f"{folder} has no model card: minitron card {folder} makes one")
    url = None
    if not dry_run:
        if quiet or not out.interactive:
            disable_progress_bars()
        url = publishing.push(uploads, repository, out.note, private=private, revision=revision)
    entries = [{"file": u.path.name, "bytes": u.bytes, "state": u.state} for u in uploads]
    if as_json:
        out.document({"repository": repository, "url": url, "files": entries})
        return
    out.table(
        ["File", "Size", "On the Hub"],
        [[u.path.name, show_size(u.bytes), u.state] for u in uploads],
    )
    sent = sum(u.bytes for u in uploads if u.state != "there")
    out.text(f"{show_size(sent)} to upload" if dry_run else f"{show_size(sent)} uploaded to {url}")
