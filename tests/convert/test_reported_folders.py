"""Checkpoint folders as people have them: what is not needed for the weights stops nothing."""

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES
from minitron_convert.convert import ConvertResult, ConvertSettings, convert
from minitron_core.gguf import open_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """nano-llama's files; the weights are linked."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in (EXAMPLES / "nano-llama").iterdir():
        if path.name == "model.safetensors":
            (folder / path.name).symlink_to(path)
        else:
            shutil.copyfile(path, folder / path.name)
    return folder


def converted(folder: Path) -> ConvertResult:
    return convert(ConvertSettings(folder, folder.parent / "out.gguf", vocab_only=True))


CARDS = [
    "language: [en, no]",
    "tags: [llama, 3.1]",
    "tags: [llama, 2024-05-01]",
    "tags:\n- llama\n-",
    "model_name: 3.1",
    "version: true",
    "author: 42",
]


@pytest.mark.parametrize("head", CARDS)
def test_convert_takes_model_cards_of_any_type(folder: Path, head: str) -> None:
    (folder / "README.md").write_text(f"---\n{head}\nlicense: mit\n---\n# A model\n")
    assert converted(folder).notes == converted_without_card(folder)


def converted_without_card(folder: Path) -> tuple[str, ...]:
    (folder / "README.md").unlink()
    (folder.parent / "out.gguf").unlink()
    return converted(folder).notes


def test_convert_passes_over_a_card_that_is_not_utf8(folder: Path) -> None:
    (folder / "README.md").write_bytes("---\nlicense: mit\n---\nGröße".encode("latin-1"))
    assert any("README.md" in note for note in converted(folder).notes)


@pytest.mark.parametrize("text", ["", '{"temperature": 0.5,}', '{"a": 1} // why'])
def test_convert_passes_over_broken_generation_settings(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    assert any("generation_config.json" in note for note in converted(folder).notes)


@pytest.mark.parametrize("kind", ["tiktoken", "empty"])
def test_convert_chooses_the_tokenizer_by_content(folder: Path, kind: str) -> None:
    lines = [f"{base64.b64encode(bytes([i])).decode()} {i}\n" for i in range(256)]
    (folder / "tokenizer.model").write_text("".join(lines) if kind == "tiktoken" else "")
    assert any("tokenizer.json is used" in note for note in converted(folder).notes)


def test_convert_says_which_of_two_templates_it_takes(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("FILE")
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text()) | {"chat_template": "CONFIG"}
    path.write_text(json.dumps(settings))
    assert any("chat_template.jinja" in note for note in converted(folder).notes)


def test_convert_follows_linked_shards(folder: Path) -> None:
    place = folder.parent / "other-disk"
    place.mkdir()
    weights = folder / "model.safetensors"
    shutil.copyfile(weights, place / "part.safetensors")
    weights.unlink()
    (folder / "part.safetensors").symlink_to(place / "part.safetensors")
    size = int.from_bytes((place / "part.safetensors").read_bytes()[:8], "little")
    header = json.loads((place / "part.safetensors").read_bytes()[8 : 8 + size])
    names = {name: "part.safetensors" for name in header if name != "__metadata__"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    result = convert(ConvertSettings(folder, folder.parent / "out.gguf", outtype="f16"))
    assert result.tensors == len(names) + 1  # rope_freqs is made


def test_convert_keeps_what_a_card_says_as_text(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlanguage: [en, no]\nmodel_name: 3.1\n---\n")
    file = open_gguf(converted(folder).paths[0])
    assert file.get("general.languages") == ["en", "no"] and file.get("general.name") == "3.1"


def test_convert_says_that_a_vocabulary_lacks_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    shutil.copytree(EXAMPLES / "nano-nemotron", folder)
    path = folder / "tokenizer.model"
    # the type of these pieces, BYTE (6), becomes NORMAL (1)
    pieces = re.compile(rb"(<0x..>\x15....\x18)\x06", re.DOTALL)
    data = pieces.sub(lambda found: found[1] + b"\x01", path.read_bytes())
    path.write_bytes(data)
    assert any("single bytes" in note for note in converted(folder).notes)
    assert not any("single bytes" in note for note in converted_as_it_is(tmp_path).notes)


def converted_as_it_is(tmp_path: Path) -> ConvertResult:
    output = tmp_path / "whole.gguf"
    return convert(ConvertSettings(EXAMPLES / "nano-nemotron", output, vocab_only=True))
