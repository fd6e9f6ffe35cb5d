"""Damage to JSON documents: junk in any place of the value, and what only the text can show."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import lru_cache
from random import Random
from typing import Any

JUNK = ["null", "0", "1", "-1", "3.5", "1e308", "Infinity", "1" + 30 * "0", "true", '""', '"x"']
JUNK += ['"<s>"', '"\\ud800"', "[]", "{}", "[1]", "[null]", "[[]]", '["a", "b"]', '{"a": 1}']
_HOSTILE = ["NaN", "-0.0", "2147483647", "4294967296", "9223372036854775807", "1e-320", '"\\u0000"']
_HOSTILE += ['"../../x"', '"/etc/passwd"', '"{{ 7 * 7 }}"', '"\\u001b[2J"', '"' + 5000 * "y" + '"']
_HOSTILE += [40 * "[" + 40 * "]", '{"":' * 30 + "1" + "}" * 30, "[" + "0," * 2000 + "0]"]
_HOSTILE += ["1" * 400, "-1e999", '"%s%n"', '"true"', '"0"', "0.1", "[-1]", '[{"id": 1}]']


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, the first few of long lists."""
    yield place
    items: list[Any] = []
    if isinstance(value, dict):
        items = list(value)[:40]
    elif isinstance(value, list):
        items = list(range(min(len(value), 6)))
    for item in items:
        yield from places(value[item], (*place, item))


def damaged(text: str, choose: Random) -> str:
    """The JSON text with junk in one place, or without it."""
    value = json.loads(text)
    place = choose.choice(list(places(value)))
    if not place:
        return choose.choice(JUNK)
    parent = value
    for item in place[:-1]:
        parent = parent[item]
    if choose.random() < 0.2:
        del parent[place[-1]]
    else:
        parent[place[-1]] = json.loads(choose.choice(JUNK))
    return json.dumps(value)


@lru_cache(64)
def _parsed(data: bytes) -> tuple[Any, list[tuple[Any, ...]]]:
    value = json.loads(data)
    return value, list(places(value))


def damage_json(data: bytes, choose: Random) -> bytes:
    """A document with junk, or with parts removed, renamed, exchanged, repeated, nested."""
    value, known = _parsed(data)
    value = copy.deepcopy(value)
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        value = _changed(value, choose.choice(known), choose)
    text = json.dumps(value)
    if choose.random() < 0.1:
        text = _odd(text, choose)
    return text.encode("utf-8", "surrogatepass")


def damage_lines(data: bytes, choose: Random) -> bytes:
    """JSON lines of which one is damaged."""
    lines = data.splitlines()
    at = choose.randrange(len(lines))
    lines[at] = damage_json(lines[at], choose)
    return b"\n".join(lines) + b"\n"


def _junk(choose: Random) -> Any:
    return json.loads(choose.choice(JUNK if choose.random() < 0.6 else _HOSTILE))


def _changed(value: Any, place: tuple[Any, ...], choose: Random) -> Any:
    if not place:
        return value if choose.random() < 0.9 else _junk(choose)
    parent = value
    try:
        for item in place[:-1]:
            parent = parent[item]
        _change_item(parent, place[-1], choose)
    except (KeyError, IndexError, TypeError, OverflowError):
        pass  # another change has taken the place away
    return value


def _change_item(parent: Any, key: Any, choose: Random) -> None:
    kind = choose.randrange(8)
    old = parent[key]
    if kind <= 2:
        parent[key] = _junk(choose)
    elif kind == 3:
        del parent[key]
    elif kind == 4 and isinstance(parent, dict):
        parent[choose.choice(["", "x", *map(str, parent)])] = parent.pop(key)
    elif kind == 4 and isinstance(parent, list):
        parent.extend([old] * choose.choice((1, 3, 100)))
    elif kind == 5:
        parent[key] = parent[choose.choice(list(parent) if isinstance(parent, dict) else [0, key])]
    elif kind == 6:
        parent[key] = [old] if choose.random() < 0.5 else {"x": old}
    elif isinstance(old, int | float):
        parent[key] = choose.choice((old + 1, old - 1, -old, old * 1000, float(old), str(old)))
    else:
        parent[key] = str(old)


def _odd(text: str, choose: Random) -> str:
    """What a parsed value cannot hold: keys given twice, depth, numbers, other encodings."""
    at = choose.randrange(len(text))
    deep = choose.choice((10, 500, 3000, 50_000))
    return choose.choice(
        (
            text.replace("{", '{"a": 1, "a": 2, ', 1),
            text.replace("{", text[:-1] + ", " if text.startswith("{") else "{", 1),
            text.replace(":", ":" + "[" * deep + "]" * deep + ', "z":', 1),
            text.replace(":", ': "' + "\\u0041" * 50 + '", "z":', 1),
            "\ufeff" + text,
            text + text,
            text[:at],
            text[:at] + "\x00" + text[at:],
        )
    )
