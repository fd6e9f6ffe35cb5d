"""Vocabularies as checkpoints hold them: added tokens, pre-tokenizers, damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.vocabulary import Tokenizer, convert_vocabulary
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import Damaged, Unsupported
from minitron_core.gguf import Gguf, open_gguf


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def vocabulary_of(folder: Path, out: Path) -> Gguf:
    """The converted vocabulary, opened."""
    return open_gguf(convert_vocabulary(folder, out))


def test_vocabulary_holds_the_added_tokens_of_a_fine_tune(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-tied")
    added = [
        {"id": 4096, "content": "<|turn|>", "special": False, "normalized": False},
        {"id": 4097, "content": "▁▁", "special": False, "normalized": False},
        {"id": 4099, "content": "<stop>", "special": True, "normalized": False},
    ]
    edit(folder / "tokenizer.json", lambda value: value["added_tokens"].extend(added))
    edit(folder / "config.json", lambda value: value.update(vocab_size=4100))
    (folder / "generation_config.json").write_text('{"eos_token_id": [4095, 4099, 4096]}')
    path = convert_vocabulary(folder, tmp_path)
    model = open_gguf(path)
    assert model.get("tokenizer.ggml.tokens")[4096:] == ["<|turn|>", "  ", "[PAD4098]", "<stop>"]
    assert model.get("tokenizer.ggml.token_type")[4096:].tolist() == [3, 4, 5, 3]
    assert model.get("tokenizer.ggml.eot_token_id") == 4099
    assert model.get("tokenizer.ggml.eom_token_id") == 4096
    tokenizer = Tokenizer(path, special=True)
    assert [tokenizer.is_end(i) for i in (4094, 4095, 4096, 4098, 4099)] == [
        False,
        True,
        True,
        False,
        True,
    ]
    assert tokenizer.encode("a<stop>b")[-2] == 4099
    tokenizer.close()


def test_special_tokens_include_those_of_code_llama(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-tied")
    names = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    for count in (3, 4):
        added = [{"id": 4096 + i, "content": name} for i, name in enumerate(names[:count])]
        edit(folder / "tokenizer.json", lambda value, a=added: value.update(added_tokens=a))
        edit(folder / "config.json", lambda value: value.update(vocab_size=4100))
        model = vocabulary_of(folder, tmp_path)
        keys = [
            f"tokenizer.ggml.{key}_token_id" for key in ("fim_pre", "fim_suf", "fim_mid", "eot")
        ]
        found = [model.get(key) for key in keys]
        assert found == ([4096, 4097, 4098, 4099] if count == 4 else [None] * 4)


def test_recognize_refuses_by_name_of_the_nearest(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-tied")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace(r"\\p{N}{1,3}", r"\\p{N}{1,4}"))
    with pytest.raises(Unsupported, match="not known") as caught:
        convert_vocabulary(folder, tmp_path)
    assert "llama-bpe" in caught.value.hint


def test_recognize_knows_tekken_and_others(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-tied")
    cased = (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": cased}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    digits = {"type": "Digits", "individual_digits": True}
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    for parts, ignore, name in (
        ([split, level], True, "tekken"),
        ([digits, gpt2], False, "smollm"),
        ([gpt2], False, "gpt-2"),
    ):

        def change(
            value: dict[str, Any], parts: list[dict[str, Any]] = parts, ignore: bool = ignore
        ) -> None:
            value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
            value["model"]["ignore_merges"] = ignore

        edit(folder / "tokenizer.json", change)
        assert vocabulary_of(folder, tmp_path).get("tokenizer.ggml.pre") == name


def test_bpe_says_that_llama_cpp_does_not_normalize(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-tied")
    edit(folder / "tokenizer.json", lambda value: value.update(normalizer={"type": "NFC"}))
    result = convert(ConvertSettings(folder, tmp_path, vocab_only=True))
    assert any("normalizes" in note for note in result.notes)


def test_vocabulary_larger_than_the_embedding_is_damaged(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for variant in ("llama-tied", "nemotron-f16"):
        folder = checkpoint(variant)
        edit(folder / "config.json", lambda value: value.update(vocab_size=4000))
        with pytest.raises(Damaged, match="4000"):
            convert_vocabulary(folder, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text", "types"])
def test_read_model_refuses_damaged_sentencepiece_models(
    damage: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("nemotron-f16")
    path = folder / "tokenizer.model"
    content = {
        "cut": path.read_bytes()[:1001],
        "text": b"not a model at all",
        "types": b"\x0a\x02\x18\x63",
    }[damage]
    path.write_bytes(content)
    with pytest.raises(Damaged, match="SentencePiece"):
        convert_vocabulary(folder, tmp_path)
