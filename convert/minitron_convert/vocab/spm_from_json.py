"""SentencePiece vocabularies that come as a tokenizer.json alone (BPE with byte fallback)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from minitron_convert.vocab.bpe import put_base, read_merges
from minitron_convert.vocab.sentencepiece import ADDED_SCORE, PLACEHOLDER_SCORE, SPACE, put_added
from minitron_convert.vocab.tokens import TokenType, Vocabulary

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def is_pieces(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is a SentencePiece model in another form."""
    return tokenizer["model"].get("byte_fallback") is True


def build(
    tokenizer: dict[str, Any], path: Path, size: int, added: dict[int, tuple[str, bool]]
) -> Vocabulary:
    """The vocabulary of `size` tokens. Damaged: ids beyond `size`, no merges.

    A piece's score is minus the rank of the first merge that makes it: SentencePiece numbers the
    pieces of a BPE model in the order of its merges, and only the order of scores matters.
    """
    vocabulary = Vocabulary.unused("llama", "default", size)
    put_base(vocabulary, tokenizer, path, added)
    scores = [PLACEHOLDER_SCORE] * size
    ids = tokenizer["model"]["vocab"]
    for i in ids.values():
        scores[i] = 0.0
    merges = read_merges(tokenizer["model"].get("merges"), path)
    ranked: set[str] = set()
    for merge in merges:
        piece = merge.replace(" ", "")
        if piece in ids and piece not in ranked:
            scores[ids[piece]] = -float(len(ranked))
            ranked.add(piece)
    unknown = tokenizer["model"].get("unk_token")
    for piece, i in ids.items():
        if _BYTE.fullmatch(piece):
            vocabulary.types[i] = TokenType.BYTE
    for i, (token, special) in added.items():
        put_added(vocabulary, i, token, special)
        scores[i] = ADDED_SCORE
    if isinstance(unknown, str) and unknown in ids:
        vocabulary.types[ids[unknown]] = TokenType.UNKNOWN
    vocabulary.scores = scores
    vocabulary.add_space_prefix = None if _adds_prefix(tokenizer) else False
    return vocabulary


def _adds_prefix(tokenizer: dict[str, Any]) -> bool:
    """Whether a space is put before the text: by the normalizer, or by the pre-tokenizer."""
    for part in _parts(tokenizer.get("normalizer")):
        if part.get("type") == "Prepend" and part.get("prepend") == SPACE:
            return True
    for part in _parts(tokenizer.get("pre_tokenizer")):
        if part.get("type") == "Metaspace":
            scheme = part.get("prepend_scheme")
            return scheme != "never" if scheme else part.get("add_prefix_space") is not False
    return False


def _parts(node: Any) -> list[dict[str, Any]]:
    if not isinstance(node, dict):
        return []
    inner = node.get("normalizers") or node.get("pretokenizers") or [node]
    return [part for part in inner if isinstance(part, dict)] if isinstance(inner, list) else []
