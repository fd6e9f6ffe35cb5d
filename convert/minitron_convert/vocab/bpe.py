"""Byte-level BPE vocabularies from tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minitron_convert.checkpoint.json_files import read_optional
from minitron_convert.vocab.pretokenizers import choose_pretokenizer
from minitron_convert.vocab.sentencepiece import put_added
from minitron_convert.vocab.tokens import TokenType, Vocabulary
from minitron_core.errors import Damaged

BYTE_OF_SPACE = "Ġ"


def build(
    tokenizer: dict[str, Any], path: Path, size: int, added: dict[int, tuple[str, bool]]
) -> Vocabulary:
    """The vocabulary of a tokenizer.json, `size` tokens long, with added tokens.

    Damaged: ids beyond `size`, no merges. Unsupported: an unknown pre-tokenizer.
    """
    merges = read_merges(tokenizer["model"].get("merges"), path)
    settings = read_optional(path.with_name("tokenizer_config.json"))
    name, notes = choose_pretokenizer(tokenizer, settings, merges, path)
    vocabulary = Vocabulary.unused("gpt2", name, size)
    vocabulary.notes += notes
    put_base(vocabulary, tokenizer, path, added)
    if tokenizer.get("normalizer"):
        vocabulary.notes.append(
            f"{path.name} normalizes text first, which llama.cpp does not do for BPE"
        )
    for i, (token, special) in added.items():
        put_added(vocabulary, i, token, special)
    vocabulary.merges = merges
    return vocabulary


def put_base(
    vocabulary: Vocabulary,
    tokenizer: dict[str, Any],
    path: Path,
    added: dict[int, tuple[str, bool]],
) -> None:
    """Set the tokens of the tokenizer's own vocabulary. Damaged: ids beyond the model's."""
    size = len(vocabulary.tokens)
    base = tokenizer["model"].get("vocab")
    if not isinstance(base, dict) or not all(type(i) is int and i >= 0 for i in base.values()):
        raise Damaged(f"{path} has no vocabulary of ids", "download it again")
    highest = max((*base.values(), *added), default=0)
    if highest >= size:
        raise Damaged(
            f"{path} has a token {highest}; the model has a vocabulary of {size}",
            "the tokenizer belongs to another model, or its embedding was not resized",
        )
    for token, i in base.items():
        vocabulary.tokens[i] = token.encode()
        vocabulary.types[i] = TokenType.NORMAL


def read_merges(merges: Any, path: Path) -> list[str]:
    """Merges as "left right", from either of the two forms in which they are stored."""
    if isinstance(merges, list) and merges:
        if all(isinstance(merge, str) for merge in merges):
            return merges
        if all(
            isinstance(merge, list)
            and len(merge) == 2
            and isinstance(merge[0], str)
            and isinstance(merge[1], str)
            for merge in merges
        ):
            return [" ".join(part.replace(" ", BYTE_OF_SPACE) for part in m) for m in merges]
    raise Damaged(f"{path} has no merges", "download it again")
