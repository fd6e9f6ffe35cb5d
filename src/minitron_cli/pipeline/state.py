"""What a job has done, so that another run continues there."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from minitron_core.atomic_files import read_checksummed, write_checksummed
from minitron_core.hashing import file_sha256

Document = dict[str, Any]


class State:
    """What a job has done, in one small file that is replaced whole; a damaged one counts as empty.

    remade: how often `remembered` had to make its rows.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Any] = {}
        self.remade = 0
        with suppress(OSError, ValueError):
            self._entries = read_checksummed(path)

    def get(self, key: str) -> Any:
        """The entry, or None."""
        return self._entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Record an entry durably."""
        self._entries[key] = value
        write_checksummed(self._path, self._entries)

    def put_file(self, stage: str, key: str, path: Path) -> None:
        """Record the file that a stage made, of inputs with this fingerprint."""
        self.put(stage, {"key": key, "file": path.name, "sha256": file_sha256(path)})

    def finished_file(self, stage: str, key: str, note: Callable[[str], None]) -> Path | None:
        """The file that a stage made of inputs with this fingerprint, if it is still the same."""
        found = self.get(stage) or {}
        if found.get("key") != key:
            return None
        path = self._path.with_name(found["file"])
        if not path.is_file():
            return None
        if found["sha256"] != file_sha256(path):
            note(f"{path.name} was changed since it was made: it is made again")
            return None
        return path

    def remembered(self, key: str, work: Callable[[], list[Document]]) -> list[Document]:
        """The rows recorded under a key, or those that `work` makes now."""
        rows: list[Document] | None = self.get(key)
        if rows is None:
            self.remade += 1
            rows = work()
            self.put(key, rows)
        return rows
