"""What every vocabulary consists of, and its keys in a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from minitron_core.gguf import KeyValue, ValueType


class TokenType(IntEnum):
    """How llama.cpp treats a token (llama_token_type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class Vocabulary:
    """Tokens by id, with what their model needs: merges for BPE, scores for SentencePiece."""

    model: str
    pre: str
    tokens: list[bytes]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def unused(cls, model: str, pre: str, size: int) -> Vocabulary:
        """A vocabulary of `size` placeholders, which the tokens that exist then replace."""
        tokens = [f"[PAD{i}]".encode() for i in range(size)]
        return cls(model, pre, tokens, [int(TokenType.UNUSED)] * size)

    def keys(self) -> list[KeyValue]:
        """The tokenizer.ggml.* keys of the tokens themselves."""
        keys = [
            KeyValue.of("tokenizer.ggml.model", ValueType.STRING, self.model),
            KeyValue.of("tokenizer.ggml.pre", ValueType.STRING, self.pre),
            KeyValue.of("tokenizer.ggml.tokens", ValueType.ARRAY, self.tokens),
        ]
        if self.scores is not None:
            scores = np.array(self.scores, "<f4")
            keys.append(KeyValue.of("tokenizer.ggml.scores", ValueType.ARRAY, scores))
        types = np.array(self.types, "<i4")
        keys.append(KeyValue.of("tokenizer.ggml.token_type", ValueType.ARRAY, types))
        if self.merges:
            keys.append(KeyValue.of("tokenizer.ggml.merges", ValueType.ARRAY, self.merges))
        return keys

    def prefix_keys(self) -> list[KeyValue]:
        """The key that says whether a space is put before the text, where it must be said."""
        if self.add_space_prefix is None:
            return []
        key = "tokenizer.ggml.add_space_prefix"
        return [KeyValue.of(key, ValueType.BOOL, self.add_space_prefix)]


def looks_special(token: str) -> bool:
    """Whether an added token that is not marked special is one all the same.

    Some models forget the mark on tokens that structure a conversation or stand for nothing.
    """
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<\uff5c") and token.endswith("\uff5c>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def added_tokens(entries: Any) -> dict[int, tuple[str, bool]]:
    """Text and the mark of being special by id, from a list as in tokenizer.json."""
    if not isinstance(entries, list):
        return {}
    return {
        entry["id"]: (entry["content"], entry.get("special") is True)
        for entry in entries
        if isinstance(entry, dict)
        and isinstance(entry.get("content"), str)
        and type(entry.get("id")) is int
        and entry["id"] >= 0
    }
