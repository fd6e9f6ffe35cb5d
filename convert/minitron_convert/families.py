"""The table of supported families for the documentation, made from the records."""

from __future__ import annotations

import sys

from minitron_convert.architectures import ARCHITECTURES

_HEAD = """# Supported families

`minitron convert` takes checkpoints of these classes (the first of `architectures` in config.json).
The table is made from the records in `convert/minitron_convert/architectures` by `make manual`.

| class | llama.cpp's name | models | for example on the Hub |
|---|---|---|---|
"""


def families_markdown() -> str:
    """The page of supported families: one row per class, in the order of their names."""
    rows = [
        f"| {name} | {architecture.arch} | {architecture.models} | {architecture.hub} |"
        for name, architecture in sorted(ARCHITECTURES.items(), key=lambda item: item[0].lower())
    ]
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(families_markdown())
