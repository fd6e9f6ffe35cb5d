"""The name of a pre-tokenizer by llama.cpp's own fingerprint, computed without transformers.

llama.cpp's converter encodes one fixed text and looks up the SHA-256 of its ids. The ids need the
file's own merges, and its regular expressions only on that text: a class like \\p{L} becomes the
list of the text's characters that are in it, which Python's own expressions understand.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from minitron_convert.vocab.post_processor import special_tokens_around

_DATA = json.loads(Path(__file__).with_name("fingerprints.json").read_text(encoding="utf-8"))
TEXT: str = _DATA["text"]
NAMES: Mapping[str, str] = _DATA["names"]

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PROPERTY = re.compile(r"\\([pP])\{(\^?)(\w+)\}")
_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
# What no expression of a tokenizer needs on this text, and what would take forever.
_LONGEST_EXPRESSION = 10_000


class _Unknown(ValueError):
    """A part of a tokenizer whose effect on the text is not known here."""


def pretokenizer_name(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], merges: Iterable[str]
) -> str | None:
    """llama.cpp's name for a tokenizer.json, None where the fingerprint is not one of its own.

    `settings` is tokenizer_config.json, `merges` are pairs as "left right".
    """
    try:
        ids = _encode(tokenizer, merges)
        before, after = special_tokens_around(tokenizer, settings)
    except (_Unknown, KeyError, TypeError, AttributeError, re.error, RecursionError, IndexError):
        return None
    digest = hashlib.sha256(str([*before, *ids, *after]).encode()).hexdigest()
    return NAMES.get(digest)


def _encode(tokenizer: Mapping[str, Any], merges: Iterable[str]) -> list[int]:
    """The ids of the text, without special tokens around it."""
    model = tokenizer["model"]
    vocabulary = model["vocab"]
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    whole_words = bool(model.get("ignore_merges"))
    added = {
        entry["content"]: entry["id"]
        for entry in tokenizer.get("added_tokens") or []
        if entry["content"] and entry["content"] in TEXT
    }
    ids: list[int] = []
    for part in _split_added(TEXT, added):
        if part in added:
            ids.append(added[part])
            continue
        for piece in _pieces(tokenizer.get("pre_tokenizer"), [_normalized(tokenizer, part)]):
            ids += _merge(piece, vocabulary, ranks, whole_words)
    return ids


def _split_added(text: str, added: Mapping[str, int]) -> list[str]:
    """The text cut at added tokens, the longest first where several fit."""
    if not added:
        return [text]
    longest_first = sorted(added, key=len, reverse=True)
    expression = "|".join(re.escape(token) for token in longest_first)
    return [part for part in re.split(f"({expression})", text) if part]


def _normalized(tokenizer: Mapping[str, Any], text: str) -> str:
    node = tokenizer.get("normalizer")
    for part in (node or {}).get("normalizers", [node] if node else []):
        form = next((form for form in _FORMS if form == part["type"]), None)
        if form is None:
            raise _Unknown(part["type"])
        text = unicodedata.normalize(form, text)
    return text


def _pieces(node: Any, pieces: list[str]) -> list[str]:
    """What a pre-tokenizer makes of pieces of the text."""
    if node is None:
        return pieces
    kind = node["type"]
    if kind == "Sequence":
        for part in node["pretokenizers"]:
            pieces = _pieces(part, pieces)
        return pieces
    if kind == "ByteLevel":
        if node.get("add_prefix_space"):
            raise _Unknown("a space before every piece")
        return _cut(pieces, _GPT2) if node.get("use_regex", True) else pieces
    if kind == "Digits":
        return _cut(pieces, r"\p{N}" if node.get("individual_digits") else r"\p{N}+")
    if kind == "Split":
        pattern = node["pattern"]
        expression = pattern.get("Regex") or re.escape(pattern["String"])
        removed = node.get("behavior") == "Removed" and node.get("invert") is True
        if not removed and (node.get("behavior") != "Isolated" or node.get("invert")):
            raise _Unknown(f"a split {node.get('behavior')}")
        return _cut(pieces, expression, keep_rest=not removed)
    raise _Unknown(kind)


def _cut(pieces: Iterable[str], expression: str, *, keep_rest: bool = True) -> list[str]:
    """Pieces cut into what an expression matches and, with `keep_rest`, what is between."""
    compiled = re.compile(_without_properties(expression))
    found = []
    for piece in pieces:
        end = 0
        for match in compiled.finditer(piece):
            if keep_rest and match.start() > end:
                found.append(piece[end : match.start()])
            if match[0]:
                found.append(match[0])
            end = match.end()
        if keep_rest and end < len(piece):
            found.append(piece[end:])
    return found


def _without_properties(expression: str) -> str:
    """An expression with \\p{…} spelled out as the text's own characters."""
    if len(expression) > _LONGEST_EXPRESSION:
        raise _Unknown("a very long expression")
    parts, end, depth = [], 0, 0
    for match in _PROPERTY.finditer(expression):
        before = expression[end : match.start()]
        depth += _opened(before)
        negated = (match[1] == "P") is not bool(match[2])
        members = _members(match[3], negated)
        parts += [before, members if depth else f"[{members}]"]
        end = match.end()
    return "".join([*parts, expression[end:]])


def _opened(text: str) -> int:
    """How many character classes a part of an expression opens less those that it closes."""
    plain = re.sub(r"\\.", "", text)
    return plain.count("[") - plain.count("]")


def _members(name: str, negated: bool) -> str:
    """The characters of the text, in its forms, that have a property, escaped for a class."""
    test = _property(name)
    found = [c for c in _CHARACTERS if test(c) is not negated]
    return "".join(re.escape(c) for c in found) or "\\ue000"  # a class may not be empty


def _property(name: str) -> Callable[[str], bool]:
    if name == "Han":
        return lambda c: unicodedata.name(c, "").startswith(("CJK UNIFIED", "CJK COMPAT"))
    if len(name) > 2:
        raise _Unknown(name)
    return lambda c: unicodedata.category(c).startswith(name)


_CHARACTERS = sorted({c for form in _FORMS for c in TEXT + unicodedata.normalize(form, TEXT)})


def _byte_characters() -> dict[int, str]:
    """GPT-2's characters for bytes: printable ones stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


_CHARACTER_OF_BYTE = _byte_characters()


def _merge(
    piece: str, vocabulary: Mapping[str, int], ranks: Mapping[str, int], whole_words: bool
) -> list[int]:
    """The ids of a piece: neighbours are merged, the earliest merge of the list first."""
    text = "".join(_CHARACTER_OF_BYTE[byte] for byte in piece.encode())
    if whole_words and text in vocabulary:
        return [vocabulary[text]]
    parts, none = list(text), len(ranks)
    while len(parts) > 1:
        pairs = [ranks.get(f"{a} {b}", none) for a, b in pairwise(parts)]
        best = min(pairs)
        if best == none:
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [vocabulary[part] for part in parts]
