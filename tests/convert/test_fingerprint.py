"""Pre-tokenizers by llama.cpp's fingerprint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from minitron_convert.vocab import fingerprint
from minitron_convert.vocab.bpe import read_merges
from minitron_convert.vocab.fingerprint import TEXT, pretokenizer_name
from minitron_convert.vocab.post_processor import special_tokens_around
from minitron_convert.vocab.pretokenizers import choose_pretokenizer


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """tokenizer.json, tokenizer_config.json and the merges of a folder."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    return tokenizer, settings, read_merges(tokenizer["model"]["merges"], path)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("qwen3", "qwen2"), ("tekken", "tekken"), ("smollm2", "smollm"), ("llama3.1", "llama-bpe")],
)
def test_pretokenizer_name_of_published_tokenizers(name: str, wanted: str, shared: Path) -> None:
    tokenizer, settings, merges = read(shared / "tokenizers" / name)
    assert pretokenizer_name(tokenizer, settings, merges) == wanted


def test_pretokenizer_name_depends_on_the_token_before_a_text(shared: Path) -> None:
    tokenizer, settings, merges = read(shared / "tokenizers" / "tekken")
    assert pretokenizer_name({**tokenizer, "post_processor": None}, settings, merges) == "pixtral"


def test_encode_gives_the_ids_of_the_tokenizers_library(examples: Path) -> None:
    tokenizer, settings, merges = read(examples / "nano-llama")
    library = tokenizers.Tokenizer.from_file(str(examples / "nano-llama" / "tokenizer.json"))
    before, after = special_tokens_around(tokenizer, settings)
    ids = [*before, *fingerprint._encode(tokenizer, merges), *after]
    assert ids == library.encode(TEXT).ids
    assert pretokenizer_name(tokenizer, settings, merges) is None


@pytest.mark.parametrize(("name", "noted"), [("smollm2", True), ("tekken", False)])
def test_choose_pretokenizer_says_where_llama_cpp_splits_differently(
    name: str, noted: bool, shared: Path
) -> None:
    tokenizer, settings, merges = read(shared / "tokenizers" / name)
    chosen, notes = choose_pretokenizer(tokenizer, settings, merges, Path("tokenizer.json"))
    assert chosen in ("smollm", "tekken")
    assert bool(notes) is noted
    changed, notes = choose_pretokenizer(
        {**tokenizer, "post_processor": None}, settings, merges, Path("tokenizer.json")
    )
    assert changed in ("smollm", "pixtral")
    assert "splits some texts differently" in notes[0]


EXPRESSIONS = (
    fingerprint._GPT2,
    r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+",
    r"[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lo}\p{M}]+|\P{L}",
    r"\p{N}",
    r"[\p{Han}]+|\p{L}+",
)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_cut_splits_as_the_tokenizers_library(expression: str) -> None:
    library = tokenizers.pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
    wanted = [piece for piece, _ in library.pre_tokenize_str(TEXT)]
    assert fingerprint._cut([TEXT], expression) == wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@given(node=JSON, key=st.sampled_from(["model", "pre_tokenizer", "normalizer", "added_tokens"]))
def test_pretokenizer_name_of_junk_is_none(node: Any, key: str) -> None:
    tokenizer = {"model": {"vocab": {"a": 0}}, key: node}
    assert pretokenizer_name(tokenizer, {}, []) is None


def test_fingerprints_are_sha256_hashes() -> None:
    assert len(fingerprint.NAMES) == 95
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in fingerprint.NAMES)
