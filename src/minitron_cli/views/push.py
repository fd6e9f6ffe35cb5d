"""The files of a push."""

from collections.abc import Sequence

from minitron_cli.hub.upload import Upload
from minitron_cli.output import Output
from minitron_cli.units import show_size


def show_uploads(out: Output, repository: str, url: str | None, uploads: Sequence[Upload]) -> None:
    """What was uploaded to `url`; without one, what would be."""
    entries = [{"file": u.path.name, "bytes": u.bytes, "state": u.state} for u in uploads]
    if out.as_json:
        out.document({"repository": repository, "url": url, "files": entries})
        return
    out.table(
        ["File", "Size", "On the Hub"],
        [[u.path.name, show_size(u.bytes), u.state] for u in uploads],
    )
    sent = sum(u.bytes for u in uploads if u.state != "there")
    out.text(
        f"{show_size(sent)} to upload" if url is None else f"{show_size(sent)} uploaded to {url}"
    )
