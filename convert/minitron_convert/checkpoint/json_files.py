"""Reading the JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minitron_core.errors import Damaged, from_os_error
from minitron_core.lfs_pointer import refuse_lfs_pointer
from minitron_core.quoting import quoted
from minitron_core.text_encoding import as_utf8


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. NotFound, Denied, Damaged."""
    try:
        return as_utf8(path.read_bytes()).decode().replace("\r\n", "\n")
    except OSError as error:
        raise from_os_error(error, path, "read") from error
    except UnicodeDecodeError as error:
        raise Damaged(f"{path} is not UTF-8 text", "download it again") from error


def parse_object(text: str | bytes, path: Path, *, unique: bool = False) -> dict[str, Any]:
    """The JSON object in `text`, which came from `path`; Damaged if it is none, or NotFound.

    With `unique` a key that is there twice is an error too: its second value hides the first.
    """
    refuse_lfs_pointer(path, text.encode() if isinstance(text, str) else text)
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique else None)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not valid JSON: {error}", "download it again") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path} holds no JSON object", "download it again")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different; ValueError names one that is not."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(
            f"it gives {quoted(next(key for key in keys if keys.count(key) > 1))} twice"
        )
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that the file holds. NotFound, Denied, Damaged."""
    return parse_object(read_text(path), path)


def read_optional(path: Path) -> dict[str, Any]:
    """The JSON object that the file holds, or an empty one if there is no such file."""
    return read_object(path) if path.is_file() else {}


def read_settings(path: Path, notes: list[str]) -> dict[str, Any]:
    """An object that weights and vocabulary do not need; a note where it cannot be read."""
    try:
        return read_optional(path)
    except Damaged:
        notes.append(f"{path.name} is not valid JSON: nothing was taken from it")
        return {}
