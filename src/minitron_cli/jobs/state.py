"""What a job has done, so that it goes on there."""

import json
from pathlib import Path
from typing import Any

from minitron_quant.whole_files import write_whole


class State:
    """What a job has done, in one small file that is replaced whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            loaded = json.loads(path.read_text())
        except (OSError, ValueError):
            loaded = {}
        self._entries: dict[str, Any] = loaded if isinstance(loaded, dict) else {}

    def get(self, key: str) -> Any:
        """The entry, or None."""
        return self._entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Record an entry durably."""
        self._entries[key] = value
        write_whole(self._path, json.dumps(self._entries))
