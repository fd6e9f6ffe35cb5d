"""Whether files are still what a manifest says: sizes first, then their SHA-256."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from minitron_core.atomic_files import read_checksummed
from minitron_core.errors import Damaged, NotFound
from minitron_core.hashing import file_sha256
from minitron_core.progress import Event, Progress

_LONGEST = 255  # characters of a name: the limit of file systems

State = Literal["ok", "changed", "missing"]


@dataclass(frozen=True)
class Checked:
    """One file of a manifest. needed: not so for what levels were made from, which may be gone."""

    name: str
    state: State
    needed: bool

    @property
    def passed(self) -> bool:
        """Whether it is what it should be, or may be missing."""
        return self.state == "ok" or (self.state == "missing" and not self.needed)


def check_manifest(manifest: Path, listener: Progress) -> list[Checked]:
    """Every file that a manifest names, beside it. NotFound, Damaged: the manifest itself."""
    entries = list(_entries(_read(manifest)))
    total = sum(size or 0 for _, size, _, _ in entries)
    found, done = [], 0
    for name, size, sha256, needed in entries:
        listener(Event("verify", done, max(total, 1), "bytes", name))
        found.append(Checked(name, _state(manifest.with_name(name), size, sha256), needed))
        done += size or 0
    return found


def _state(path: Path, size: int | None, sha256: str) -> State:
    if not path.is_file():
        return "missing"
    if size is not None and path.stat().st_size != size:
        return "changed"
    return "ok" if file_sha256(path) == sha256 else "changed"


def _read(manifest: Path) -> dict[str, Any]:
    try:
        document = read_checksummed(manifest)
        list(_entries(document))
    except FileNotFoundError as error:
        raise NotFound(f"{manifest} does not exist") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(
            f"{manifest} is not a manifest of minitron quantize, or was changed since"
        ) from error
    return document


def _entries(document: dict[str, Any]) -> Iterator[tuple[str, int | None, str, bool]]:
    """Name, bytes if recorded, SHA-256, and whether it must be there."""
    made = [file for level in document["levels"].values() for file in level["files"]]
    used = [*document["source"], *([document["imatrix"]] if document.get("imatrix") else [])]
    for files, needed in ((made, True), (used, False)):
        for file in files:
            name, sha256 = file["name"], file["sha256"]
            # a manifest speaks of its own folder and of nothing else
            if not isinstance(sha256, str) or Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(name)
            size = file.get("bytes")
            if not name.isprintable() or len(name) > _LONGEST or type(size) not in (int, NoneType):
                raise ValueError(name)
            yield name, size, sha256, needed
