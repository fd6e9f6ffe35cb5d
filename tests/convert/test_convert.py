"""Conversions against what llama.cpp's own converter makes of the same checkpoints."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import synthetic_checkpoints
from minitron_convert.convert import ConvertSettings, convert, plan
from minitron_core.gguf import Gguf, KeyValue, ValueType, open_gguf, open_shards
from minitron_core.progress import Event

Recorded = Callable[[str], dict[str, Any]]

# Keys that differ from llama.cpp's converter on purpose: model → key → (our value, reason).
DIFFERENCES: dict[str, dict[str, tuple[Any, str]]] = {
    "nemotron": {
        "tokenizer.ggml.add_space_prefix": (
            False,
            "tokenizer.model says add_dummy_prefix = false; llama.cpp's converter drops that and "
            "its tokenizer then puts a space before every text",
        )
    },
}
VARIANTS = (
    "llama-tied",
    "llama-bias",
    "llama-linear",
    "llama-yarn",
    "llama-wide-heads",
    "mistral",
    "nemotron-bias",
    "nemotron-f16",
    "nemotron-old-keys",
    "nemotron-linear",
)
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")


def compare(path: Path, expected: dict[str, Any]) -> None:
    """Check a file of ours against the description of llama.cpp's."""
    ours = open_gguf(path)
    differences = DIFFERENCES.get(ours.get("general.architecture", ""), {})
    for key, (value, _) in differences.items():
        assert ours.get(key) == value
    keys = {key: entry for key, entry in ours.metadata.items() if key not in differences}
    assert set(keys) == set(expected["metadata"])
    for key, (kind, _, digest) in expected["metadata"].items():
        assert keys[key].type == kind, key
        assert hashlib.sha256(keys[key].raw).hexdigest() == digest, (key, keys[key].value)
    assert [describe(ours, i) for i in range(len(ours.tensors))] == expected["tensors"]
    if not differences and expected["tensors"]:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == expected["sha256"]


def describe(model: Gguf, i: int) -> list[Any]:
    """A tensor as the recording has it."""
    info = model.tensors[i]
    digest = hashlib.sha256(model.data(info).tobytes()).hexdigest()
    return [info.name, list(info.shape), info.type, digest]


@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("model", ["nano-llama", "nano-nemotron"])
def test_convert_writes_bundled_models_as_llama_cpp(
    model: str, outtype: str, tmp_path: Path, examples: Path, recorded: Recorded
) -> None:
    (expected,) = recorded(model)["runs"][f"--outtype {outtype}"]
    result = convert(ConvertSettings(examples / model, tmp_path, outtype))
    assert [path.name for path in result.paths] == [expected["name"]]
    assert result.bytes == result.paths[0].stat().st_size
    compare(result.paths[0], expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_convert_writes_variants_as_llama_cpp(
    variant: str, tmp_path: Path, checkpoint: Callable[[str], Path], recorded: Recorded
) -> None:
    folder = checkpoint(variant)
    for outtype in OUTTYPES:
        (expected,) = recorded(variant)["runs"][f"--outtype {outtype}"]
        result = convert(ConvertSettings(folder, tmp_path, outtype, force=True))
        assert result.paths[0].name == expected["name"]
        compare(result.paths[0], expected)


def test_variants_are_all_tested() -> None:
    assert set(VARIANTS) == set(synthetic_checkpoints.VARIANTS)


@pytest.mark.parametrize("model", ["nano-llama", "nano-nemotron"])
def test_convert_splits_as_llama_cpp(
    model: str, tmp_path: Path, examples: Path, recorded: Recorded
) -> None:
    expected = recorded(model)["runs"]["--outtype f16 --split-max-size 4M"]
    settings = ConvertSettings(examples / model, tmp_path, "f16", split_max_size=4_000_000)
    result = convert(settings)
    assert [path.name for path in result.paths] == [file["name"] for file in expected]
    for path, file in zip(result.paths, expected, strict=True):
        compare(path, file)
    assert sum(len(shard.tensors) for shard in open_shards(result.paths[0])) == result.tensors


@pytest.mark.parametrize("model", ["nano-llama", "nano-nemotron"])
def test_convert_writes_a_vocabulary_alone(
    model: str, tmp_path: Path, examples: Path, recorded: Recorded
) -> None:
    (expected,) = recorded(model)["runs"]["--vocab-only"]
    # llama.cpp's converter writes the type that it would choose into a vocabulary too.
    result = convert(ConvertSettings(examples / model, tmp_path, "bf16", vocab_only=True))
    assert result.paths[0].name == expected["name"]
    compare(result.paths[0], expected)


@pytest.mark.parametrize("size", ["Width", "Depth"])
def test_convert_writes_published_vocabularies_as_llama_cpp(
    size: str, tmp_path: Path, shared: Path, recorded: Recorded
) -> None:
    model = f"Llama-3.1-Minitron-4B-{size}-Base"
    folder = tmp_path / model
    folder.mkdir()
    for source in (shared / "tokenizers" / "llama3.1", shared / "nvidia-configs" / model):
        for path in source.glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    (expected,) = recorded(f"{model}.vocab")["runs"]["--vocab-only"]
    result = convert(ConvertSettings(folder, tmp_path, "f16", vocab_only=True))
    assert result.paths[0].name == expected["name"]
    compare(result.paths[0], expected)


def test_plan_describes_what_convert_writes(tmp_path: Path, examples: Path) -> None:
    settings = ConvertSettings(examples / "nano-llama", tmp_path / "m.gguf", "q8_0")
    planned = plan(settings)
    assert not list(tmp_path.iterdir())
    convert(settings)
    model = open_gguf(tmp_path / "m.gguf")
    assert [(t.name, t.shape, t.type) for t in model.tensors] == planned.tensors
    assert planned.bytes == model.size
    assert (planned.architecture, planned.outtype) == ("llama", "q8_0")


def test_convert_writes_nothing_in_a_dry_run(
    tmp_path: Path, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = convert(ConvertSettings(examples / "nano-llama", dry_run=True))
    assert result.paths == (Path("Nano-Llama-8.0M-BF16.gguf"),)
    assert result.dry_run
    assert result.bytes > 16_000_000
    assert 64 << 20 < result.memory < 1 << 30
    assert not list(tmp_path.iterdir())


def test_convert_reports_every_byte(tmp_path: Path, examples: Path) -> None:
    events: list[Event] = []
    result = convert(ConvertSettings(examples / "nano-llama", tmp_path, "f16"), events.append)
    done = [event.done for event in events]
    assert done == sorted(done)
    assert done[-1] == events[-1].total == sum(t.nbytes for t in open_gguf(result.paths[0]).tensors)
    assert {event.unit for event in events} == {"bytes"}
    assert events[-1].detail == "output_norm.weight"


def test_read_general_prefers_the_metadata_file(tmp_path: Path, examples: Path) -> None:
    override = tmp_path / "override.json"
    values = {"general.name": "Other", "general.tags": ["a", "b"], "general.sampling.temp": 0.25}
    override.write_text(json.dumps(values))
    settings = ConvertSettings(examples / "nano-llama", tmp_path, metadata=override)
    result = convert(settings)
    model = open_gguf(result.paths[0])
    assert model.get("general.name") == "Other"
    assert model.get("general.tags") == ["a", "b"]
    assert model.get("general.sampling.temp") == 0.25
    assert result.paths[0].name == "Other-8.0M-BF16.gguf"


def test_read_general_goes_by_the_given_name(
    tmp_path: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the folder had that name, without a link of that name: some systems have none."""
    folder = checkpoint("llama-tied")
    renamed = folder.parent / "Small-Story-7B-Instruct-v0.2"
    shutil.copytree(folder, renamed)
    wanted = convert(ConvertSettings(renamed, tmp_path / "a.gguf")).paths[0].read_bytes()
    monkeypatch.delattr(Path, "symlink_to")
    settings = ConvertSettings(folder, tmp_path / "b.gguf", name=renamed.name)
    assert convert(settings).paths[0].read_bytes() == wanted
    assert open_gguf(tmp_path / "b.gguf").get("general.basename") == "Small-Story"


CARD = """---
license: apache-2.0
license_name: custom
language:
- en
- no
base_model: nvidia/Minitron-4B-Base
tags: [alpha, beta]
---
# A model
"""


def test_read_general_takes_the_model_card(
    tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    folder = checkpoint("llama-tied")
    (folder / "README.md").write_text(CARD)
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.5, "top_k": null}')
    model = open_gguf(convert(ConvertSettings(folder, tmp_path)).paths[0])
    found = {key: entry.value for key, entry in model.metadata.items() if "general." in key}
    assert found["general.license"] == "apache-2.0"
    assert found["general.license.name"] == "custom"
    assert found["general.languages"] == ["en", "no"]
    assert found["general.tags"] == ["alpha", "beta"]
    assert found["general.base_model.count"] == 1
    assert found["general.base_model.0.name"] == "Minitron 4B Base"
    assert (
        found["general.base_model.0.repo_url"] == "https://huggingface.co/nvidia/Minitron-4B-Base"
    )
    assert found["general.sampling.penalty_repeat"] == 1.5


def test_read_general_passes_over_a_broken_model_card(
    tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    folder = checkpoint("llama-tied")
    (folder / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    result = convert(ConvertSettings(folder, tmp_path))
    assert any("README.md" in note for note in result.notes)


def test_convert_writes_chat_templates(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("llama-tied")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    model = open_gguf(convert(ConvertSettings(folder, tmp_path)).paths[0])
    assert model.get("tokenizer.chat_template") == "{{ messages }}"
    assert model.get("tokenizer.chat_templates") == ["tool_use"]
    assert model.get("tokenizer.chat_template.tool_use") == "{{ tools }}"
    assert model.metadata["tokenizer.chat_template"] == KeyValue.of(
        "tokenizer.chat_template", ValueType.STRING, "{{ messages }}"
    )


def test_convert_keeps_the_values_of_the_checkpoint(tmp_path: Path, examples: Path) -> None:
    model = open_gguf(convert(ConvertSettings(examples / "nano-llama", tmp_path)).paths[0])
    data = model.data(model.tensor("token_embd.weight")).view(np.uint16)
    source = np.memmap(examples / "nano-llama" / "model.safetensors", np.uint8, "r")
    header = json.loads(source[8 : 8 + int.from_bytes(source[:8].tobytes(), "little")].tobytes())
    begin, end = header["model.embed_tokens.weight"]["data_offsets"]
    start = 8 + int.from_bytes(source[:8].tobytes(), "little")
    assert (source[start + begin : start + end].view(np.uint16) == data).all()
