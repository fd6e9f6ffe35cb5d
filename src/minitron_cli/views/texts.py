"""The texts there are, and those that were fetched."""

from collections.abc import Sequence
from dataclasses import asdict

from minitron_cli.hub.texts import Fetched, Text
from minitron_cli.output import Output
from minitron_cli.units import show_size


def show_texts(out: Output, texts: Sequence[Text]) -> None:
    """What can be fetched, with license and SHA-256."""
    if out.as_json:
        out.document({"texts": [asdict(text) for text in texts]})
        return
    headers = ["Name", "File", "License", "For", "Size"]
    rows = [[t.name, t.file, t.license, t.use, show_size(t.bytes)] for t in texts]
    out.table(headers, rows, left=4)


def show_fetched(out: Output, fetched: Sequence[Fetched]) -> None:
    """Files with their licenses and hashes."""
    if out.as_json:
        out.document(
            {
                "texts": [
                    {"path": str(each.path), "kept": each.kept, **asdict(each.text)}
                    for each in fetched
                ]
            }
        )
        return
    for each in fetched:
        told = "is up to date" if each.kept else f"written ({show_size(each.text.bytes)})"
        out.text(f"{each.path} {told}")
        out.note(f"license: {each.text.license}; SHA-256 {each.text.sha256}")
