"""Where a checkpoint comes from: a folder, or the Hub."""

from pathlib import Path

from minitron_cli.output import Listener
from minitron_convert.hub import Source, open_source
from minitron_engine.errors import Usage


def open_checkpoint_source(text: str, revision: str | None, listener: Listener) -> Source:
    """The folder of `text`, downloaded where it is owner/name[@revision] on the Hub."""
    if revision is not None and Path(text).expanduser().exists():
        raise Usage(f"--revision is for the Hub, and {text} is a folder", "drop it")
    return open_source(text, revision, listener)
