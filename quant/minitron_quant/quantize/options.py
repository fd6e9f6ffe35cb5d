"""The options of a quantization besides the level, with the meaning of llama-quantize."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minitron_core.errors import Usage
from minitron_core.gguf import TYPE_ID, KeyValue, ValueType
from minitron_core.quoting import quoted

# types that ggml_quantize_chunk has no encoder for; it would abort
_NOT_ENCODABLE = frozenset(("q8_1", "q8_K", "i8", "i16", "i32", "i64", "f64"))
_TYPE_BY_NAME = {
    name.lower(): number for name, number in TYPE_ID.items() if name not in _NOT_ENCODABLE
}
ENCODABLE = frozenset(_TYPE_BY_NAME.values())
_OVERRIDE_TYPES = {
    "int": ValueType.UINT32,
    "float": ValueType.FLOAT32,
    "bool": ValueType.BOOL,
    "str": ValueType.STRING,
}
MAX_TEXT = 127  # of llama_model_kv_override


@dataclass(frozen=True)
class QuantizeOptions:
    """Types are ggml ids. tensor_types: (pattern, type), of which the first match applies."""

    pure: bool = False
    tensor_types: tuple[tuple[str, int], ...] = ()
    output_type: int | None = None
    embedding_type: int | None = None
    leave_output: bool = False
    allow_requantize: bool = False
    keep_split: bool = False
    overrides: tuple[KeyValue, ...] = ()


def type_named(name: str) -> int:
    """The ggml id of a tensor type that can be encoded, in any case."""
    try:
        return _TYPE_BY_NAME[name.lower()]
    except KeyError:
        known = ", ".join(_TYPE_BY_NAME)
        raise Usage(
            f"tensors cannot be encoded to the type {name}", f"choose from: {known}"
        ) from None


def parse_tensor_type(text: str) -> tuple[str, int]:
    """PATTERN=TYPE; the pattern is a regular expression, lower-cased as llama-quantize does."""
    pattern, sign, type_name = text.partition("=")
    if not sign or not pattern or not type_name:
        raise Usage(f"--tensor-type {text} is not of the form PATTERN=TYPE")
    pattern = pattern.lower()
    try:
        re.compile(pattern)
    except re.error as error:
        raise Usage(f"--tensor-type {pattern} is not a regular expression: {error}") from error
    return pattern, type_named(type_name)


def check_patterns(patterns: Sequence[str], names: Sequence[str], option: str) -> None:
    """Refuse a pattern without a match: otherwise a typo would be ignored silently."""
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise Usage(
                f"{option} {pattern} matches no tensor of the model",
                f"its tensors have names like {names[len(names) // 2]}",
            )


def parse_override(text: str) -> KeyValue:
    """KEY=TYPE:VALUE with the types int, float, bool and str; integers keep their sign."""
    key, sign, typed = text.partition("=")
    type_name, colon, value = typed.partition(":")
    if not (sign and colon and key) or type_name not in _OVERRIDE_TYPES or len(key) > MAX_TEXT:
        raise Usage(
            f"--override-kv {text} is not of the form KEY=TYPE:VALUE",
            f"types: {', '.join(_OVERRIDE_TYPES)}",
        )
    try:
        value_type, parsed = _override_value(type_name, value)
    except ValueError as error:
        raise Usage(f"--override-kv {text}: {quoted(value)} is not of type {type_name}") from error
    return KeyValue.of(key, value_type, parsed)


def _override_value(type_name: str, value: str) -> tuple[ValueType, Any]:
    if type_name == "int":
        number = int(value)
        if number < 0:
            return (ValueType.INT32 if number >= -(2**31) else ValueType.INT64), number
        return (ValueType.UINT32 if number < 2**32 else ValueType.UINT64), number
    if type_name == "float":
        return ValueType.FLOAT32, float(value)
    if type_name == "bool":
        if value not in ("true", "false"):
            raise ValueError(value)
        return ValueType.BOOL, value == "true"
    return ValueType.STRING, value
