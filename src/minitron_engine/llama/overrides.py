"""Metadata that llama.cpp uses instead of a file's own."""

from collections.abc import Sequence
from typing import Any

from minitron_engine.llama.binding import api

Override = tuple[str, bool | int | float | str]
# llama_model_kv_override_type, and the field of its value; a bool is an int to Python
_KINDS: tuple[tuple[type, int, str], ...] = (
    (bool, 2, "val_bool"),
    (int, 0, "val_i64"),
    (float, 1, "val_f64"),
    (str, 3, "val_str"),
)


def as_array(overrides: Sequence[Override]) -> Any:
    """llama.cpp's array of overrides, None if there are none; the caller keeps it alive.

    A value has the type that llama.cpp expects of its key.
    """
    if not overrides:
        return None
    array = (api.llama_model_kv_override * (len(overrides) + 1))()  # ends with an empty key
    for slot, (key, value) in zip(array, overrides, strict=False):
        slot.key = key.encode()
        slot.tag, field = next((tag, field) for kind, tag, field in _KINDS if type(value) is kind)
        setattr(slot.value, field, value.encode() if isinstance(value, str) else value)
    return array
