"""Every architecture against what llama.cpp's converter makes of a tiny checkpoint of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from helpers.raw_llama import llama_logits
from helpers.tiny_checkpoints import LONG, NAMES, description, make_checkpoint, source_tensors
from minitron_convert.checkpoint.safetensors import read_header
from minitron_convert.convert import ConvertSettings, convert
from minitron_convert.verify import verify
from minitron_core.errors import Damaged, Unsupported
from minitron_core.gguf import GgufWriter, TensorSpec, open_gguf

# Keys that are in our files alone: model → keys and values, with the reason.
_NO_SPACE = ({"tokenizer.ggml.add_space_prefix": False}, "tokenizer.model adds no space to a text")
MORE_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "nemotron": _NO_SPACE,
    "ernie4_5": _NO_SPACE,
    "phi3": _NO_SPACE,
    "phi3-longrope": _NO_SPACE,
    "exaone3": (
        {"exaone.attention.layer_norm_rms_epsilon": np.float32(1e-5).item()},
        "llama.cpp's converter leaves it out and llama.cpp's loader wants it",
    ),
}


def recorded_value(value: Any) -> str:
    """A key's value as the recordings have it."""
    if isinstance(value, list) and len(value) > LONG:
        value = f"[{len(value)} items]"
    return repr(value)[:150]


def keys_of(model: gguf.GGUFReader) -> dict[str, tuple[str, Any]]:
    """Type and value of every key, in order."""
    return {
        key: ("/".join(kind.name.lower() for kind in field.types), field.contents())
        for key, field in model.fields.items()
        if not key.startswith("GGUF.")
    }


def tensors_of(model: gguf.GGUFReader) -> list[str]:
    """The tensors as the recordings have them."""
    return [
        f"{tensor.name} {tensor.tensor_type.name} {'x'.join(str(n) for n in tensor.shape)} "
        f"{hashlib.sha256(tensor.data.tobytes()).hexdigest()[:12]}"
        for tensor in model.tensors
    ]


def hash_less_more_keys(name: str, path: Path) -> str:
    """SHA-256 of the file, written again without the keys that are in ours alone."""
    more = MORE_KEYS.get(name, ({}, ""))[0]
    if more:
        model = open_gguf(path)
        assert {key: model.get(key) for key in more} == more
        keys = [entry for key, entry in model.metadata.items() if key not in more]
        specs = [TensorSpec(info.name, info.shape, info.type) for info in model.tensors]
        path = path.with_name("less.gguf")
        with GgufWriter(path, keys, specs) as writer:
            for info in model.tensors:
                writer.write(model.data(info))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def difference(name: str, path: Path) -> str:
    """The first key or tensor that is not as recorded."""
    told, model = description(name), gguf.GGUFReader(path)
    found = [[key, kind, recorded_value(value)] for key, (kind, value) in keys_of(model).items()]
    pairs = zip_longest([*found, *tensors_of(model)], [*told["keys"], *told["tensors"]])
    return next((f"{ours}, recorded {theirs}" for ours, theirs in pairs if ours != theirs), "none")


@pytest.fixture(scope="module")
def convert_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A maker of the file of a tiny checkpoint, for all tests that only read it."""

    @cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        return convert(ConvertSettings(make_checkpoint(name, folder), folder)).paths[0]

    return make


@pytest.mark.parametrize("name", NAMES)
def test_architecture_converts_as_by_llama_cpp(
    name: str, convert_once: Callable[[str], Path]
) -> None:
    path = convert_once(name)
    same = hash_less_more_keys(name, path) == description(name)["files"]["auto"]
    assert same, difference(name, path)


@pytest.mark.parametrize(
    ("name", "outtype"),
    [
        (name, outtype)
        for name in NAMES
        for outtype in description(name)["files"]
        if outtype != "auto"
    ],
)
def test_architecture_converts_to_other_types_as_by_llama_cpp(
    name: str, outtype: str, tmp_path: Path
) -> None:
    path = convert(ConvertSettings(make_checkpoint(name, tmp_path), tmp_path, outtype)).paths[0]
    assert hash_less_more_keys(name, path) == description(name)["files"][outtype]


@pytest.mark.parametrize("name", NAMES)
def test_architecture_loads_and_evaluates(
    name: str, convert_once: Callable[[str], Path], tmp_path: Path
) -> None:
    path = convert_once(name)
    if name.startswith("phi3"):
        # llama.cpp looks for Phi-3's special tokens in any model of that name
        settings = ConvertSettings(make_checkpoint(name, tmp_path), tmp_path, name="tiny")
        path = convert(settings).paths[0]
    logits = llama_logits(path, [5, 6, 7, 8, 9, 10, 11, 12])
    assert np.isfinite(logits).all()
    assert logits.std() > 1e-3


@pytest.mark.parametrize("name", ["nemotron-3-super-120b", "gpt-oss", "deepseek2-lite", "lfm2moe"])
@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_verify_accepts_stacks_and_splits(name: str, outtype: str, tmp_path: Path) -> None:
    settings = ConvertSettings(make_checkpoint(name, tmp_path), tmp_path, outtype)
    result = verify(settings, convert(settings).paths[0])
    assert result.passed, [check for check in result.checks if not check.passed]


def test_tied_output_is_dropped_where_llama_cpp_drops_it(tmp_path: Path) -> None:
    shapes = source_tensors("hunyuan-dense")
    shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    plain = convert(ConvertSettings(make_checkpoint("hunyuan-dense", tmp_path), tmp_path)).paths[0]
    wanted = plain.read_bytes()
    more = make_checkpoint("hunyuan-dense", tmp_path / "more", shapes=shapes)
    assert convert(ConvertSettings(more, tmp_path, force=True)).paths[0].read_bytes() == wanted


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "capped"),
        ("deepseek2-lite", {"q_lora_rank": 1536}, "a model of 27 layers for a Lite one"),
        ("deepseek2", {"q_lora_rank": None}, "only with q_lora_rank"),
        ("qwen3", {"_name_or_path": "Qwen/Qwen3-Reranker-0.6B"}, "reranker"),
        ("mixtral", {"rope_scaling": {"type": "longrope"}}, "longrope"),
    ],
)
def test_read_model_refuses_what_llama_cpp_would_compute_otherwise(
    name: str, config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match=words):
        convert(ConvertSettings(make_checkpoint(name, tmp_path, config), tmp_path))


def test_deepseek2_says_that_groups_of_experts_are_chosen_otherwise(tmp_path: Path) -> None:
    grouped = {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}
    folder = make_checkpoint("deepseek2", tmp_path, grouped)
    (note,) = convert(ConvertSettings(folder, tmp_path)).notes
    assert "groups of experts" in note


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("granite4-h", {"layer_types": 2.5}),
        ("phi4-mini", {"partial_rotary_factor": "x"}),
        ("nemotron-h-8b", {"hybrid_override_pattern": 5}),
    ],
)
def test_read_model_refuses_junk_that_a_record_reads_by_itself(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(Damaged):
        convert(ConvertSettings(make_checkpoint(name, tmp_path, config), tmp_path))


def test_cohere2_takes_biases_of_zeros_alone(tmp_path: Path) -> None:
    shapes = source_tensors("cohere2")
    bias = "model.layers.0.self_attn.q_proj.bias"
    shapes[bias] = ("BF16", (64,))
    folder = make_checkpoint("cohere2", tmp_path, shapes=shapes)
    with pytest.raises(Unsupported, match="not zero"):
        convert(ConvertSettings(folder, tmp_path))
    path = folder / "model.safetensors"
    (found,) = [tensor for tensor in read_header(path) if tensor.name == bias]
    np.memmap(path, np.uint16, "r+", found.offset, found.shape)[:] = 0
    assert convert(ConvertSettings(folder, tmp_path)).tensors == len(shapes) - 1
