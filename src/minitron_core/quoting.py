"""Values as messages write them: as JSON and TOML spell them, never as Python does."""

import json
from pathlib import PurePath

_MOST = 80  # characters


def quoted(value: object, most: int = _MOST) -> str:
    """A value in a message: 'text', true, null, [1, 2], {"a": 1}; cut after `most` characters."""
    if isinstance(value, bytes | PurePath):
        value = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if isinstance(value, str) and value.isprintable() and not {"'", "\\"} & set(value):
        return f"'{_cut(value, most)}'"
    return _cut(json.dumps(value, ensure_ascii=False, default=_plain), most)


def _plain(value: object) -> object:
    if isinstance(value, set | frozenset):
        return list(value)
    to_list = getattr(value, "tolist", None)  # numpy's arrays and numbers
    return to_list() if to_list else str(value)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
