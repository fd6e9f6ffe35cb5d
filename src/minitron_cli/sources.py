"""Where a checkpoint comes from: a folder, or the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minitron_cli.output import Listener
from minitron_convert.hub.download import Source, open_source
from minitron_convert.hub.headers import open_headers
from minitron_core.errors import Usage


@contextmanager
def open_checkpoint_source(
    text: str, revision: str | None, listener: Listener, *, headers_only: bool = False
) -> Iterator[Source]:
    """The folder of `text`, downloaded where it is owner/name[@revision] on the Hub.

    headers_only: for a plan; weights on the Hub stay there.
    """
    if revision is not None and Path(text).expanduser().exists():
        raise Usage(f"--revision is for the Hub, and {text} is a folder", "drop it")
    if headers_only:
        with open_headers(text, revision) as source:
            yield source
    else:
        yield open_source(text, revision, listener)
