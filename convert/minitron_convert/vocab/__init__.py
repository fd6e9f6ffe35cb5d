"""Vocabularies: from tokenizer.model (SentencePiece) or tokenizer.json (byte-level BPE)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minitron_convert.checkpoint.json_files import read_object, read_optional, read_text
from minitron_convert.vocab import bpe, sentencepiece, spm_from_json
from minitron_convert.vocab.byte_tokens import note_missing_bytes
from minitron_convert.vocab.rules import VocabularyRules
from minitron_convert.vocab.special import SpecialTokens, read_special
from minitron_convert.vocab.tokens import TokenType, Vocabulary, added_tokens
from minitron_core.errors import Damaged, NotFound, Unsupported
from minitron_core.gguf import KeyValue

__all__ = ["SpecialTokens", "TokenType", "Vocabulary", "read_vocabulary", "vocabulary_keys"]

_FEW_TOKENS = 1 << 16


def read_vocabulary(folder: Path, size: int, rules: VocabularyRules) -> Vocabulary:
    """The vocabulary of a checkpoint's folder, `size` tokens. NotFound, Damaged, Unsupported."""
    vocabulary = _read_vocabulary(folder, size, rules)
    note_missing_bytes(vocabulary)
    return vocabulary


def _read_vocabulary(folder: Path, size: int, rules: VocabularyRules) -> Vocabulary:
    size = -(-size // rules.pad_to) * rules.pad_to
    model = folder / "tokenizer.model"
    wants_pieces = _wants_pieces(folder, rules)
    notes = []
    # tiktoken's files have this name, too, and so have empty placeholders
    if wants_pieces and (folder / "tokenizer.json").is_file() and not _has_pieces(model):
        notes.append("tokenizer.model is not a SentencePiece model: tokenizer.json is used")
        wants_pieces = False
    if wants_pieces:
        if not model.is_file():
            raise NotFound(
                f"{folder} has no tokenizer.model",
                "download it too: tokenizer.json alone does not tell all of this vocabulary",
            )
        phi = rules.reader == "phi"
        pieces = _added_to_pieces(folder, everywhere=phi)
        _check_size(model, size)
        return sentencepiece.build(folder, size, pieces, as_marked=phi)
    path = folder / "tokenizer.json"
    if not path.is_file():
        if (folder / "tekken.json").is_file():
            raise Unsupported(
                f"{folder} has its tokenizer in tekken.json only",
                "add the tokenizer.json of the model's transformers version",
            )
        raise NotFound(
            f"{folder} has no tokenizer", "looked for tokenizer.model and tokenizer.json"
        )
    tokenizer = _read_tokenizer(path)
    _check_size(path, size)
    added = added_tokens(tokenizer.get("added_tokens"))
    for i, token in _added_in_settings(folder).items():
        added.setdefault(i, token)
    build = spm_from_json.build if spm_from_json.is_pieces(tokenizer) else bpe.build
    vocabulary = build(tokenizer, path, size, added)
    vocabulary.notes += notes
    return vocabulary


def _has_pieces(model: Path) -> bool:
    try:
        return not model.is_file() or bool(sentencepiece.read_model(model))
    except Damaged:
        return False


def _wants_pieces(folder: Path, rules: VocabularyRules) -> bool:
    if rules.reader == "phi":
        settings = read_optional(folder / "tokenizer_config.json")
        return settings.get("tokenizer_class") != "GPT2Tokenizer"
    has_model = (folder / "tokenizer.model").is_file()
    return rules.reader == "pieces" or (rules.reader == "auto" and has_model)


def vocabulary_keys(
    folder: Path, config: dict[str, Any], vocabulary: Vocabulary, rules: VocabularyRules
) -> list[KeyValue]:
    """Every tokenizer.* key, in the order of llama.cpp's converter."""
    settings = read_optional(folder / "tokenizer_config.json")
    template = folder / "chat_template.jinja"
    if template.is_file() and settings.get("chat_template") not in (None, read_text(template)):
        vocabulary.notes.append(
            "chat_template.jinja differs from the template in tokenizer_config.json, which is "
            "used, as by llama.cpp's converter"
        )
    stated = settings.get("add_prefix_space")
    if rules.space_prefix == "never last":
        vocabulary.add_space_prefix = False
    elif rules.space_prefix.startswith("setting") and isinstance(stated, bool):
        vocabulary.add_space_prefix = stated
    tokenizer = read_optional(folder / "tokenizer.json")
    special = read_special(folder, config, settings, tokenizer, vocabulary, rules)
    prefix, rest = vocabulary.prefix_keys(), [*vocabulary.keys(), *special.keys()]
    return [*rest, *prefix] if rules.space_prefix.endswith("last") else [*prefix, *rest]


def _check_size(path: Path, size: int) -> None:
    """Damaged where the model's vocabulary is one that no such file can hold."""
    if size > max(path.stat().st_size, _FEW_TOKENS):  # a token takes several bytes
        raise Damaged(
            f"{path} is too small for the vocabulary of {size} that config.json gives",
            "check vocab_size in config.json, or download the tokenizer again",
        )


def _read_tokenizer(path: Path) -> dict[str, Any]:
    tokenizer = read_object(path)
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise Damaged(f"{path} has no model", "download it again")
    if model.get("type", "BPE") != "BPE":
        raise Unsupported(f"{path} is a {model['type']} tokenizer; BPE is supported")
    return tokenizer


def _added_to_pieces(folder: Path, *, everywhere: bool) -> dict[int, tuple[str, bool]]:
    """Tokens beside a SentencePiece model: three files may name them, the last one decides.

    With `everywhere` they may replace pieces of the model, and tokenizer.json decides.
    """
    added = {
        i: (token, False)
        for token, i in read_optional(folder / "added_tokens.json").items()
        if type(i) is int and i >= 0
    }
    tokenizer = read_optional(folder / "tokenizer.json")
    listed = added_tokens(tokenizer.get("added_tokens"))
    if everywhere:
        return added | _added_in_settings(folder) | listed
    known = len(sentencepiece.read_model(folder / "tokenizer.model").pieces)
    added |= {i: token for i, token in listed.items() if i >= known}
    return added | _added_in_settings(folder)


def _added_in_settings(folder: Path) -> dict[int, tuple[str, bool]]:
    entries = read_optional(folder / "tokenizer_config.json").get("added_tokens_decoder")
    if not isinstance(entries, dict):
        return {}
    return added_tokens(
        [{**entry, "id": int(i)} for i, entry in entries.items() if _is_token(i, entry)]
    )


def _is_token(i: str, entry: Any) -> bool:
    return i.isdecimal() and isinstance(entry, dict)
