"""Metadata values of a GGUF file: encoding, and decoding with every length checked.

numpy is loaded where an array of numbers is decoded or a value encoded: most commands start
without either.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MAX_ARRAY_DEPTH = 4


class ValueType(IntEnum):
    """The type of a metadata value (gguf_type)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# characters that struct and numpy have in common
_NUMBERS: dict[int, struct.Struct] = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
_LENGTH = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")


class MalformedValue(ValueError):
    """A value whose encoding does not fit the bytes of the file."""


@dataclass(frozen=True)
class KeyValue:
    """One metadata entry; `raw` is the value's encoding as in the file, without its type."""

    key: str
    type: int
    raw: bytes

    @classmethod
    def of(cls, key: str, value_type: int, value: Any, element_type: int | None = None) -> KeyValue:
        """The entry for a Python value; `element_type` is that of an array's elements."""
        return cls(key, int(value_type), encode_value(value_type, value, element_type))

    @cached_property
    def value(self) -> Any:
        """The Python value: strings as str (surrogateescape), numeric arrays as numpy arrays."""
        return _decode(self.raw, 0, self.type)[0]

    @property
    def element_type(self) -> int | None:
        """The type of an array's elements, None for other values."""
        return _ARRAY_HEAD.unpack_from(self.raw)[0] if self.type == ValueType.ARRAY else None

    def stands_at(self, buffer: Any, position: int) -> bool:
        """Whether `buffer` has this value there: an encoding says itself where it ends."""
        return bool(buffer[position : position + len(self.raw)] == self.raw)

    def encoded(self) -> bytes:
        """The whole entry as it stands in a file: key, type, value."""
        return encode_string(self.key) + struct.pack("<I", self.type) + self.raw


def encode_string(text: str | bytes) -> bytes:
    """A string as its length (u64) and its UTF-8 bytes."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return _LENGTH.pack(len(data)) + data


def encode_value(value_type: int, value: Any, element_type: int | None = None) -> bytes:
    """The encoding of `value`; without `element_type`, an array's is inferred as gguf-py does.

    Raises OverflowError for numbers beyond their type, ValueError for text that is not Unicode.
    """
    if value_type == ValueType.STRING:
        return encode_string(value)
    import numpy as np

    if value_type != ValueType.ARRAY:
        with np.errstate(over="raise"):
            try:
                return np.array(value, dtype=_dtype(value_type)).tobytes()
            except FloatingPointError as error:
                raise OverflowError(f"{value} is too large") from error
    kind = infer_element_type(value) if element_type is None else element_type
    head = _ARRAY_HEAD.pack(kind, len(value))
    if kind in _NUMBERS:
        return head + np.asarray(value, dtype=_dtype(kind)).tobytes()
    return head + b"".join(encode_value(kind, item) for item in value)


def infer_element_type(values: Sequence[Any]) -> int:
    """The element type of an array: int → INT32, float → FLOAT32, a numpy array by its dtype."""
    import numpy as np

    if isinstance(values, np.ndarray):
        return {_dtype(kind): ValueType(kind) for kind in _NUMBERS}[values.dtype]
    if not len(values):
        raise ValueError("the element type of an empty list is unknown")
    for python_type, kind in (
        ((str, bytes), ValueType.STRING),
        (bool, ValueType.BOOL),
        (int, ValueType.INT32),
        (float, ValueType.FLOAT32),
        ((list, tuple, np.ndarray), ValueType.ARRAY),
    ):
        if all(isinstance(value, python_type) for value in values):
            return kind
    raise ValueError("the values of a list have several types")


def skip_string(buffer: Any, position: int) -> int:
    """Where the string at `position` ends; MalformedValue if that is outside `buffer`."""
    if position + 8 > len(buffer):
        raise MalformedValue("the file ends within a string's length")
    end: int = position + 8 + _LENGTH.unpack_from(buffer, position)[0]
    if end > len(buffer):
        raise MalformedValue(f"a string of {end - position - 8} bytes reaches beyond the file")
    return end


def skip_value(buffer: Any, position: int, value_type: int, depth: int = 0) -> int:
    """Where the value at `position` ends; nothing is allocated, every length is checked."""
    if value_type == ValueType.STRING:
        return skip_string(buffer, position)
    if value_type == ValueType.ARRAY:
        return _skip_array(buffer, position, depth)
    if value_type not in _NUMBERS:
        raise MalformedValue(f"value type {value_type} is unknown")
    end = position + _NUMBERS[value_type].size
    if end > len(buffer):
        raise MalformedValue("the file ends within a value")
    return end


def _skip_array(buffer: Any, position: int, depth: int) -> int:
    if depth >= MAX_ARRAY_DEPTH:
        raise MalformedValue(f"arrays are nested more than {MAX_ARRAY_DEPTH} deep")
    if position + _ARRAY_HEAD.size > len(buffer):
        raise MalformedValue("the file ends within an array's head")
    kind, count = _ARRAY_HEAD.unpack_from(buffer, position)
    position += _ARRAY_HEAD.size
    number = _NUMBERS.get(kind)
    # An element takes at least as many bytes as a number, or the length field of a string.
    least = number.size if number is not None else 8
    if count * least > len(buffer) - position:
        raise MalformedValue(f"an array of {count} elements reaches beyond the file")
    if number is not None:
        return int(position + count * least)
    if kind == ValueType.STRING:
        return _skip_strings(buffer, position, count)
    for _ in range(count):
        position = skip_value(buffer, position, kind, depth + 1)
    return position


def _skip_strings(buffer: Any, position: int, count: int) -> int:
    # vocabularies have hundreds of thousands, so this loop calls nothing but unpack
    size, unpack, head = len(buffer), _LENGTH.unpack_from, _LENGTH.size
    last = size - head
    for number in range(count):
        if position > last:
            raise MalformedValue(f"string {number} of {count} reaches beyond the file")
        position += head + unpack(buffer, position)[0]
    if position > size:
        raise MalformedValue(f"the last of {count} strings reaches beyond the file")
    return position


def _decode(raw: bytes, position: int, value_type: int) -> tuple[Any, int]:
    if value_type == ValueType.STRING:
        end = skip_string(raw, position)
        return raw[position + 8 : end].decode("utf-8", "surrogateescape"), end
    if value_type != ValueType.ARRAY:
        number = _NUMBERS[value_type]
        return number.unpack_from(raw, position)[0], position + number.size
    kind, count = _ARRAY_HEAD.unpack_from(raw, position)
    position += _ARRAY_HEAD.size
    if kind in _NUMBERS:
        import numpy as np

        array = np.frombuffer(raw, _dtype(kind), count, position)
        return array, position + array.nbytes
    items = []
    for _ in range(count):
        item, position = _decode(raw, position, kind)
        items.append(item)
    return items, position


def _dtype(value_type: int) -> np.dtype[Any]:
    import numpy as np

    return np.dtype(_NUMBERS[value_type].format)
