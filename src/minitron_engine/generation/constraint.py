"""Structured output: which tokens a JSON schema allows next, decided by llguidance.

A schema is compiled once; a `Constraint` then walks along with the tokens of one answer. What the
engine cannot express is an error that names the keyword: a schema is never followed in part.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from minitron_core.errors import Unsupported, Usage
from minitron_engine.llama.model import Model

# without a bound, a model can write spaces until its limit
_AFTER_COMMA, _AFTER_COLON = r",( |\n[ \t]{0,20})?", ": ?"
# long chains of references overflow the engine's stack from about 10,000 on
_MAX_REFERENCES = 2000
_MAX_BYTES = 4 << 20
_MAX_REASON = 300
_CONTROL_PREFIX = b"\xff"  # how llguidance tells a control token from text that looks like it
_SUBSCHEMAS = ("items", "additionalProperties")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")

# keywords by which an object has properties that are not in its list
_OBJECT = {"properties", "required", "additionalProperties", "patternProperties"}
_OPEN = {"additionalProperties", "patternProperties", "minProperties", *_SCHEMA_LISTS, "$ref"}

_tokenizers: "WeakKeyDictionary[Model, LLTokenizer]" = WeakKeyDictionary()


@lru_cache(64)
def compile_schema(schema: str) -> str:
    """The grammar of a JSON schema (draft 2020-12) that a `Constraint` follows.

    Raises Usage for text that is not a schema and for keywords that cannot be enforced.
    """
    document = _parsed(schema)
    _refuse_unenforced(document)
    if document is True:
        document = {}
    if not isinstance(document, dict):
        raise _refused("it must be an object")
    _close(document)
    options: Any = {
        "lenient": False,
        "coerce_one_of": False,
        "whitespace_flexible": False,
        "item_separator": _AFTER_COMMA,
        "key_separator": _AFTER_COLON,
    }
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(document), overrides=options)
    except ValueError as error:
        raise _refused(str(error)) from None
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_error:
        reason = " ".join(messages[0].split())
        raise _refused(reason.replace("Unimplemented keys", "unsupported keywords")[:_MAX_REASON])
    return grammar


def _parsed(schema: str) -> Any:
    if len(schema) > _MAX_BYTES:
        raise _refused(f"it has more than {_MAX_BYTES >> 20} MiB")
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise _refused(str(error)) from None


def _refused(reason: str) -> Usage:
    return Usage(f"the JSON schema cannot be used: {reason}", "remove or rewrite what it names")


def _refuse_unenforced(document: Any) -> None:
    """Usage for what the engine takes without enforcing it."""
    references = 0
    for schema in _subschemas(document):
        references += "$ref" in schema
        for name in ("exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(schema.get(name), bool):
                raise _refused(f"{name} must be a number, as it is since draft 6")
        if isinstance(schema.get("items"), list):
            raise _refused("items must be a schema; prefixItems takes a list")
        least, required = schema.get("minProperties", 0), schema.get("required", [])
        # free keys may repeat, and a repeated key counts once
        if isinstance(least, int) and isinstance(required, list) and least > max(1, len(required)):
            raise _refused("minProperties above 1 is unsupported, unless as many are required")
    if references > _MAX_REFERENCES:
        raise _refused(f"it has more than {_MAX_REFERENCES} times $ref")


def _subschemas(document: Any) -> Iterator[dict[str, Any]]:
    waiting = [document]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield schema
        waiting += [schema.get(name) for name in _SUBSCHEMAS]
        for name in _SCHEMA_LISTS:
            waiting += _list(schema.get(name))
        for name in _SCHEMA_MAPS:
            named = schema.get(name)
            waiting += named.values() if isinstance(named, dict) else []


def _close(document: dict[str, Any]) -> None:
    """Let objects have the properties that are listed, and no others unless it says so.

    Such an answer is as valid, and it ends. What describes an object together with another schema
    stays open: the properties of the other are not in its list.
    """
    combined = _combined(document)
    for schema in _subschemas(document):
        properties, required = schema.get("properties"), _list(schema.get("required"))
        closes = isinstance(properties, dict) and set(map(str, required)) <= properties.keys()
        if closes and id(schema) not in combined and not _OPEN & schema.keys():
            schema["additionalProperties"] = False


def _combined(document: dict[str, Any]) -> set[int]:
    """The identities of the schemas that apply to an object beside another one."""
    found: set[int] = set()
    waiting: list[Any] = []
    for schema in _subschemas(document):
        of_all = len(_list(schema.get("allOf")))
        others = sum(name in schema for name in ("anyOf", "oneOf", "$ref"))
        if of_all + others + bool(_OBJECT & schema.keys()) > 1:
            waiting += _parts(document, schema)
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict) and id(part) not in found:
            found.add(id(part))
            waiting += _parts(document, part)
    return found


def _parts(document: Any, schema: dict[str, Any]) -> list[Any]:
    """What applies to the same value as a schema: members of its lists, and what it refers to."""
    parts = [part for name in ("allOf", "anyOf", "oneOf") for part in _list(schema.get(name))]
    reference = schema.get("$ref")
    return [*parts, _target(document, reference)] if isinstance(reference, str) else parts


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _target(document: Any, reference: str) -> Any:
    """What a reference within the document names, None for what is not found that way."""
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        document = document.get(name) if isinstance(document, dict) else None
    return document


class Constraint:
    """What a grammar of `compile_schema` allows after the tokens that were accepted so far.

    Its methods raise Usage for a schema that no answer can follow, or that is too complex.
    """

    def __init__(self, model: Model, grammar: str) -> None:
        self._n_vocab = model.n_vocab
        self._matcher = LLMatcher(_tokenizer(model), grammar, log_level=0)
        self._check()

    def allowed(self) -> NDArray[np.intp]:
        """The ids of the tokens that may follow; those that end an answer once it is complete."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.flatnonzero(np.unpackbits(mask, bitorder="little")[: self._n_vocab])

    def accept(self, token: int) -> None:
        """Go on with a token, one of those that are allowed."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().splitlines()[0]
            raise _refused(f"no answer can follow it ({reason})")


def _tokenizer(model: Model) -> LLTokenizer:
    if model not in _tokenizers:
        vocabulary = _Vocabulary(model)
        vocabulary.tokenizer = _tokenizers[model] = LLTokenizer(vocabulary)
    return _tokenizers[model]


class _Vocabulary(TokenizerWrapper):
    """A model's vocabulary as llguidance reads it: each token's bytes, and the tokens that end.

    Called with text that the grammar forces, it gives the tokens that a model would expect.
    """

    def __init__(self, model: Model) -> None:
        self.tokens = [_token_bytes(model, token) for token in range(model.n_vocab)]
        ends = [token for token in range(model.n_vocab) if model.is_end(token)]
        if not ends:
            # the engine needs one; it is not a token of the model, and never among those allowed
            ends = [len(self.tokens)]
            self.tokens.append(_CONTROL_PREFIX + b"<end>")
        self.eos_token_id = ends[0]
        self.bos_token_id = None
        self.special_token_ids = ends
        self.is_tokenizer_wrapper = True  # what LLTokenizer asks for
        self.tokenizer: LLTokenizer | None = None
        self._model = model

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        # SentencePiece puts a space before a text, but not after a line break
        try:
            first, ids = self._ids("\n"), self._ids("\n" + text)
        except Unsupported:
            first, ids = [-1], []
        if ids[: len(first)] == first:
            return ids[len(first) :]
        return self.tokenizer.greedy_tokenize(text) if self.tokenizer is not None else []

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._model.tokenize(text, add_special=False, parse_special=False).tolist()
        return ids


def _token_bytes(model: Model, token: int) -> bytes:
    # control tokens have no text of their own
    return model.piece(token) or _CONTROL_PREFIX + model.piece(token, special=True)
