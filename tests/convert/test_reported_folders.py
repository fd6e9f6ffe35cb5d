"""Checkpoint folders as people have them: what is not needed for the weights stops nothing."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.support import EXAMPLES
from minitron_convert.convert import ConvertResult, ConvertSettings, convert
from minitron_core.errors import NotFound, Unsupported
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
    stated: dict[str, Any] = json.loads(path.read_text()) | {"chat_template": "CONFIG"}
    path.write_text(json.dumps(stated))
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


def rewritten(path: Path, change: Callable[[dict[str, Any]], dict[str, tuple[str, int]]]) -> None:
    """The safetensors file with another header: `change` edits it and names tensors to append."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    for name, (dtype, count) in change(header).items():
        offsets = [len(body), len(body) + count]
        header[name] = {"dtype": dtype, "shape": [count], "data_offsets": offsets}
        body += bytes(count)
    encoded = json.dumps(header).encode()
    path.unlink()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + body)


def planned(folder: Path) -> ConvertResult:
    output = folder.parent / "out.gguf"
    return convert(ConvertSettings(folder, output, outtype="f16", dry_run=True))


NO_WEIGHTS = st.dictionaries(
    st.from_regex(
        r"model\.layers\.[0-5]\.self_attn\.(mask|causal|seen)_[a-z]{1,5}", fullmatch=True
    ),
    st.sampled_from(["BOOL", "U8", "I8", "F8_E5M2", "NEW_TYPE"]),
    min_size=1,
    max_size=9,
)


@settings(
    max_examples=10,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(NO_WEIGHTS)
def test_convert_leaves_out_what_is_no_weight(folder: Path, more: dict[str, str]) -> None:
    weights = folder / "model.safetensors"
    shutil.copyfile(EXAMPLES / "nano-llama" / weights.name, folder / "kept")
    (folder / "kept").replace(weights)
    before = planned(folder)
    rewritten(weights, lambda header: {name: (kind, 3) for name, kind in more.items()})
    after = planned(folder)
    assert after.planned.tensors == before.planned.tensors
    assert [note for note in after.notes if min(more) in note and more[min(more)] in note]


@pytest.mark.parametrize("kind", ["BOOL", "U16", "U32", "NEW_TYPE"])
def test_convert_refuses_weights_of_no_known_type(folder: Path, kind: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def change(header: dict[str, Any]) -> dict[str, tuple[str, int]]:
        header[name]["dtype"] = kind
        return {}

    rewritten(folder / "model.safetensors", change)
    with pytest.raises(Unsupported, match=rf"{name} has the data type {kind}; a weight can be F64"):
        planned(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 16060522904\n"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("nano-llama", "model.safetensors"),
        ("nano-llama", "tokenizer.json"),
        ("nano-llama", "config.json"),
        ("nano-nemotron", "tokenizer.model"),
    ],
)
def test_convert_calls_a_git_lfs_pointer_that(tmp_path: Path, model: str, name: str) -> None:
    folder = tmp_path / model
    shutil.copytree(EXAMPLES / model, folder)
    (folder / name).write_text(POINTER.format("0" * 64))
    with pytest.raises(NotFound, match=f"{name} is a Git LFS pointer") as caught:
        planned(folder)
    assert "git lfs pull" in caught.value.hint and str(folder) in caught.value.hint


def test_convert_calls_a_pointer_for_torch_weights_that(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text(POINTER.format("0" * 64))
    with pytest.raises(NotFound, match="Git LFS pointer"):
        planned(folder)


def index(folder: Path, names: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_convert_takes_a_whole_file_beside_a_stale_index(folder: Path) -> None:
    before = planned(folder)
    index(folder, {f"{n}.weight": f"model-{n}-of-00002.safetensors" for n in (1, 2)})
    gone = planned(folder)
    assert gone.planned.tensors == before.planned.tensors
    assert any("index.json is stale" in note and "is used" in note for note in gone.notes)
    index(folder, {"another.weight": "model.safetensors"})
    other = planned(folder)
    assert other.planned.tensors == before.planned.tensors
    assert any("index.json is stale" in note for note in other.notes)


def test_convert_says_that_a_whole_file_beside_shards_is_left_out(folder: Path) -> None:
    weights = folder / "model.safetensors"
    (folder / "model-1.safetensors").symlink_to(weights.resolve())
    size = int.from_bytes(weights.read_bytes()[:8], "little")
    header = json.loads(weights.read_bytes()[8 : 8 + size])
    index(folder, {name: "model-1.safetensors" for name in header if name != "__metadata__"})
    assert any("model.safetensors is left out" in note for note in planned(folder).notes)
