"""Where a checkpoint is; apart from what downloads one, which loads the Hub's client."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A checkpoint's folder, and the name of its model where the folder's own says nothing."""

    folder: Path
    name: str | None = None
