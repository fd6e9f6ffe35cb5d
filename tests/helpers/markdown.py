"""The documentation as tests see it: pages, and the fenced blocks in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.support import ROOT

# written from the words of --help, not by hand
GENERATED = ROOT / "docs" / "cli.md"
_FENCE = re.compile(r"^```(?P<language>\w*)(?: (?P<mark>\S+))?$")


@dataclass(frozen=True)
class Block:
    """A fenced block. mark: the word after the language, such as why a test cannot run it."""

    page: str
    line: int
    language: str
    mark: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> Iterator[str]:
        """The commands of a shell block, those with a backslash at the end as one line."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line


def pages() -> list[Path]:
    """README.md and the pages of docs/ that are written by hand."""
    written = [path for path in sorted((ROOT / "docs").glob("*.md")) if path != GENERATED]
    return [ROOT / "README.md", *written]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence:
            inside = []
            for _, text in lines:
                if text == "```":
                    break
                inside.append(text)
            name = str(page.relative_to(ROOT))
            yield Block(name, number, fence["language"], fence["mark"], "\n".join(inside))
