"""Files of a checkpoint with junk in any place: a conversion works or says why, nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardening.fuzz.json_values import damaged
from helpers.support import PYTHON_REPR
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import MinitronError

ROUNDS = 30
EXTRA = {
    "generation_config.json": '{"temperature": 0.5, "top_k": 5, "eos_token_id": [1, 2]}',
    "added_tokens.json": '{"<a>": 5}',
    "chat_template.json": '{"chat_template": [{"name": "default", "template": "x"}]}',
    "override.json": '{"general.name": "x", "general.tags": ["a"], "general.base_models": [{}]}',
}
CARD = (
    "license: mit",
    "license: [a, 1]",
    "tags: 5",
    "tags: [1, {a: b}]",
    "language: {x: y}",
    "base_model: [1, null, {name: 3}]",
    "datasets: 7",
    "model_name: [1]",
    "license_link: 2020-01-01",
    "a: *unknown",
    "- 1",
)


def attempt(folder: Path, out: Path, **settings: Any) -> None:
    """Convert; only the converter's own errors are allowed, in one sentence, leaving nothing."""
    try:
        made = convert(ConvertSettings(folder, out / "m.gguf", force=True, **settings))
        for note in made.notes:
            assert not PYTHON_REPR.search(note), note
    except MinitronError as error:
        assert not PYTHON_REPR.search(f"{error} {error.hint}"), error
        assert str(error)
        assert "\n" not in str(error)
        assert not list(out.glob(".*partial"))


@pytest.mark.parametrize(
    "variant", ["llama-tied", "nemotron-f16", "llama-yarn", "llama-wide-heads", "nemotron-wide"]
)
def test_convert_survives_junk_in_json_files(
    variant: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, choose = checkpoint(variant), random.Random(variant)
    for name, text in EXTRA.items():
        (folder / name).write_text(text)
    texts = {path: path.read_text() for path in folder.glob("*.json")}
    for number in range(ROUNDS):
        path = choose.choice(list(texts))
        path.write_text(damaged(texts[path], choose))
        attempt(folder, tmp_path, vocab_only=number % 4 != 0, metadata=folder / "override.json")
        path.write_text(texts[path])


def test_convert_survives_junk_in_model_cards(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-tied")
    for line in CARD:
        (folder / "README.md").write_text(f"---\n{line}\n---\ntext")
        attempt(folder, tmp_path, vocab_only=True)
    for content in (b"", b"---", b"---\n\xff\n---", b"\x00" * 10):
        (folder / "README.md").write_bytes(content)
        attempt(folder, tmp_path, vocab_only=True)


def test_convert_survives_junk_in_sentencepiece_models(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, choose = checkpoint("nemotron-f16"), random.Random(3)
    path = folder / "tokenizer.model"
    whole = path.read_bytes()
    for _ in range(ROUNDS):
        content = bytearray(whole)
        for _ in range(choose.randrange(1, 4)):
            content[choose.randrange(len(content))] = choose.randrange(256)
        path.write_bytes(content[: choose.choice([len(content), choose.randrange(len(content))])])
        attempt(folder, tmp_path, vocab_only=True)
