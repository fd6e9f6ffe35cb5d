"""What a job has done, so that it goes on there."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from minitron_core.atomic_files import read_checksummed, write_checksummed


class State:
    """What a job has done, in one small file, replaced whole; a changed one is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            self._entries = read_checksummed(path)

    def get(self, key: str) -> Any:
        """The entry, or None."""
        return self._entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Record an entry durably."""
        self._entries[key] = value
        write_checksummed(self._path, self._entries)
