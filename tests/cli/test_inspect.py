"""minitron inspect: what a file holds, and how two differ."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from minitron_core.gguf import GgufWriter, KeyValue, TensorSpec, ValueType, open_gguf
from minitron_quant.inspect.difference import compare, same
from minitron_quant.quantize.run import LevelResult


def test_inspect_shows_the_matrix_of_a_level(
    minitron: Any, llama_levels: dict[str, LevelResult]
) -> None:
    path = llama_levels["IQ2_XS"].path
    document = minitron("inspect", path, "--hash", "--json").document
    assert document["imatrix"]["file"].endswith("nano-llama.imatrix.gguf")
    assert document["imatrix"]["chunks_count"] > 0
    assert document["tokenizer"] == {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": 4096,
        "chat_template": None,
    }
    assert document["sha256"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    shown = minitron("inspect", path).out
    assert "llama-bpe, 4,096 tokens" in shown and "sha256" not in shown


def test_inspect_shows_no_matrix_of_a_full_model(minitron: Any, nano_nemotron: Path) -> None:
    document = minitron("inspect", nano_nemotron, "--json").document
    assert document["imatrix"] is None and "sha256" not in document


def test_inspect_compares_types(minitron: Any, llama_levels: dict[str, LevelResult]) -> None:
    paths = [llama_levels[level].path for level in ("Q4_K_S", "Q4_K_M")]
    document = minitron("inspect", *paths, "--data", "--json").document
    assert document["metadata"]["changed"] == {"general.file_type": [14, 15]}
    assert [model["level"] for model in document["models"]] == ["Q4_K_S", "Q4_K_M"]
    moves = {(m["role"], m["first"], m["second"]) for m in document["tensors"]["types"]}
    assert ("blk.*.ffn_down.weight", "q4_K", "q6_K") in moves
    moved = sum(m["tensors"] for m in document["tensors"]["types"])
    assert document["tensors"]["data"] == {"equal": 58 - moved, "differ": []}
    shown = minitron("inspect", *paths).out
    assert "general.file_type" in shown and "blk.*.ffn_down.weight" in shown


def test_compare_finds_equal_files_the_same(
    minitron: Any, nano_llama: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(nano_llama, copy)
    assert same(compare(nano_llama, copy, with_data=True))
    assert "They do not differ" in minitron("inspect", nano_llama, copy).out


def test_compare_finds_a_token_and_a_flipped_bit(nano_llama: Path, tmp_path: Path) -> None:
    file = open_gguf(nano_llama)
    metadata = [
        KeyValue.of(entry.key, ValueType.ARRAY, [*entry.value[:-1], "other"], ValueType.STRING)
        if entry.key == "tokenizer.ggml.tokens"
        else entry
        for entry in file.metadata.values()
    ]
    specs = [TensorSpec(info.name, info.shape, info.type) for info in file.tensors]
    path = tmp_path / "changed.gguf"
    with GgufWriter(path, metadata, specs) as writer:
        for info in file.tensors:
            data = file.data(info).copy()
            data[-1] ^= info.name == "blk.3.ffn_up.weight"
            writer.write(data)
    found = compare(nano_llama, path, with_data=True)
    assert list(found["metadata"]["changed"]) == ["tokenizer.ggml.tokens"]
    assert found["tensors"]["data"]["differ"] == ["blk.3.ffn_up.weight"]
    assert not same(found)


def test_compare_takes_models_of_other_shapes(nano_llama: Path, nano_nemotron: Path) -> None:
    tensors = compare(nano_llama, nano_nemotron, with_data=False)["tensors"]
    assert "blk.0.ffn_gate.weight" in tensors["only_first"]
    assert "blk.0.attn_norm.bias" in tensors["only_second"]
    assert tensors["shapes"]["blk.0.ffn_up.weight"] == [[256, 768], [256, 1024]]


def test_inspect_data_needs_two_models(minitron: Any, nano_llama: Path) -> None:
    ran = minitron("inspect", nano_llama, "--data")
    assert ran.code == 2 and "other one" in ran.err


@pytest.mark.parametrize("which", [0, 1])
def test_inspect_refuses_what_is_missing(
    which: int, minitron: Any, nano_llama: Path, tmp_path: Path
) -> None:
    pair = [nano_llama, nano_llama]
    pair[which] = tmp_path / "none.gguf"
    assert minitron("inspect", *pair).code == 3
