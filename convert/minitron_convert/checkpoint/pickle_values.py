"""Pickles interpreted without running anything: containers, numbers, names and tensors only.

The stream is taken apart by `pickletools`, which parses and never executes; an opcode or a callable
that a saved state dictionary does not need is an error.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class RefusedPickle(ValueError):
    """The pickle asks for something else than tensors."""


@dataclass(frozen=True)
class Name:
    """A global that the pickle refers to: never imported, only compared."""

    module: str
    attribute: str

    def __str__(self) -> str:
        return f"{self.module}.{self.attribute}"


@dataclass(frozen=True)
class PersistentId:
    """A reference out of the pickle, which is how torch refers to a storage."""

    value: Any


_Calls = dict[str, Callable[..., Any]]
_MARK = object()
_MAX_STACK = 1_000_000


def load(data: bytes, calls: _Calls) -> Any:
    """The value that `data` describes; only the functions in `calls` (by full name) are applied.

    RefusedPickle if it is malformed or needs anything more.
    """
    machine = _Machine(calls)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.run(opcode.name, argument)
    except RefusedPickle:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise RefusedPickle(f"it is malformed ({error})") from error
    raise RefusedPickle("it does not end")


class _Machine:
    """The stack machine of the pickle protocol, reduced to data."""

    def __init__(self, calls: _Calls) -> None:
        self.calls = calls
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.actions: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(("PROTO", "FRAME"), self._nothing),
            **dict.fromkeys(_LITERALS, self._push),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda i: self._push(self.memo[i])),
            "MARK": lambda _: self._push(_MARK),
            "NONE": lambda _: self._push(None),
            "NEWTRUE": lambda _: self._push(True),
            "NEWFALSE": lambda _: self._push(False),
            "EMPTY_DICT": lambda _: self._push({}),
            "EMPTY_LIST": lambda _: self._push([]),
            "EMPTY_TUPLE": lambda _: self._push(()),
            "MEMOIZE": lambda _: self._put(len(self.memo)),
            "GLOBAL": lambda text: self._push(Name(*text.split(" ", 1))),
            "STACK_GLOBAL": lambda _: self._push(Name(*self._pop(2))),
            "TUPLE": lambda _: self._push(tuple(self._pop_to_mark())),
            "TUPLE1": lambda _: self._push(tuple(self._pop(1))),
            "TUPLE2": lambda _: self._push(tuple(self._pop(2))),
            "TUPLE3": lambda _: self._push(tuple(self._pop(3))),
            "BINPERSID": lambda _: self._push(PersistentId(self.stack.pop())),
            "APPEND": lambda _: self._append(self._pop(1)),
            "APPENDS": lambda _: self._append(self._pop_to_mark()),
            "SETITEM": lambda _: self._set_items(self._pop(2)),
            "SETITEMS": lambda _: self._set_items(self._pop_to_mark()),
            "REDUCE": lambda _: self._call(),
            # A state dictionary carries attributes (its _metadata), which say nothing of tensors.
            "BUILD": lambda _: self._nothing(self.stack.pop()),
        }

    def run(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        action = self.actions.get(name)
        if action is None:
            raise RefusedPickle(f"it uses the opcode {name}, which tensors do not need")
        action(argument)

    def _nothing(self, _: Any) -> None:
        pass

    def _push(self, value: Any) -> None:
        if len(self.stack) >= _MAX_STACK:
            raise RefusedPickle("it is nested too deeply")
        self.stack.append(value)

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise RefusedPickle("it is malformed (too few values)")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def _append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise RefusedPickle("it appends to something else than a list")
        target.extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise RefusedPickle("it sets items of something else than a dictionary")
        target.update(zip(values[::2], values[1::2], strict=True))

    def _call(self) -> None:
        function, arguments = self._pop(2)
        action = self.calls.get(str(function)) if isinstance(function, Name) else None
        if action is None:
            called = function if isinstance(function, Name) else "what is not a function"
            raise RefusedPickle(f"it wants to call {called}")
        self._push(action(*arguments))


_LITERALS = (
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
)
