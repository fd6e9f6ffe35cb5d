"""Verification finds every kind of difference between a file and its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from minitron_convert.convert import ConvertSettings, convert
from minitron_convert.hf_reference import source_encoder, source_logits
from minitron_convert.verify import (
    Check,
    VerifyResult,
    check_logits,
    check_token_ids,
    tolerance,
    verify,
)
from minitron_core.gguf import GgufWriter, KeyValue, TensorSpec, ValueType, open_gguf
from minitron_core.progress import Event


def by_name(result: VerifyResult) -> dict[str, Check]:
    return {check.name: check for check in result.checks}


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("model", ["nano-llama", "nano-nemotron"])
def test_verify_passes_converted_models(
    model: str, outtype: str, examples: Path, tmp_path: Path
) -> None:
    settings = ConvertSettings(examples / model, tmp_path, outtype)
    events: list[Event] = []
    result = verify(settings, convert(settings).paths[0], progress=events.append)
    assert result.passed
    assert [check.name for check in result.checks] == ["keys", "tensors", "values"]
    assert events[-1].done == events[-1].total


def test_verify_passes_wide_heads_and_shards(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for variant in ("nemotron-wide-bias", "llama-wide-heads", "nemotron-tied"):
        folder = checkpoint(variant)
        settings = ConvertSettings(folder, tmp_path, "f16", split_max_size=400_000)
        result = convert(settings)
        assert len(result.paths) > 1
        assert verify(ConvertSettings(folder), result.paths[0]).passed


def rewritten(
    path: Path,
    out: Path,
    *,
    metadata: Callable[[list[KeyValue]], list[KeyValue]] = lambda entries: entries,
    data: Callable[[str, np.ndarray], np.ndarray] = lambda name, data: data,
    drop: str = "",
    kind: int | None = None,
) -> Path:
    """A changed copy of a GGUF file."""
    model = open_gguf(path)
    kept = [info for info in model.tensors if info.name != drop]
    specs, blobs = [], []
    for info in kept:
        blob = data(info.name, np.array(model.data(info)))
        specs.append(TensorSpec(info.name, info.shape, info.type))
        if kind is not None and len(info.shape) == 2:
            values = blob.view(np.float32).reshape(info.shape[::-1])
            with np.errstate(all="ignore"):
                blob = gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind))
            specs[-1] = TensorSpec(info.name, info.shape, kind)
        blobs.append(blob)
    with GgufWriter(out, metadata(list(model.metadata.values())), specs) as writer:
        for blob in blobs:
            writer.write(np.ascontiguousarray(blob))
    return out


@pytest.mark.parametrize("kind", [2, 3, 6, 7, 34, 35, 39])
def test_verify_passes_quantized_models_within_their_error(
    kind: int, examples: Path, tmp_path: Path
) -> None:
    settings = ConvertSettings(examples / "nano-llama", tmp_path, "f32")
    path = convert(settings).paths[0]
    quantized = rewritten(path, tmp_path / "q.gguf", kind=kind)
    result = by_name(verify(settings, quantized))
    assert result["values"].passed, result["values"].detail


def test_verify_finds_a_tensor_in_another_order(examples: Path, tmp_path: Path) -> None:
    settings = ConvertSettings(examples / "nano-llama", tmp_path, "f32")
    path = convert(settings).paths[0]

    def swap(name: str, data: np.ndarray) -> np.ndarray:
        return data[::-1].copy() if name == "blk.2.attn_q.weight" else data

    for kind in (None, 2):
        wrong = rewritten(path, tmp_path / "w.gguf", data=swap, kind=kind)
        values = by_name(verify(settings, wrong))["values"]
        assert not values.passed
        assert values.detail.startswith("blk.2.attn_q.weight")
        assert ";" not in values.detail


def test_verify_finds_one_wrong_value_in_floats(examples: Path, tmp_path: Path) -> None:
    settings = ConvertSettings(examples / "nano-llama", tmp_path, "f32")
    path = convert(settings).paths[0]

    def change(name: str, data: np.ndarray) -> np.ndarray:
        if name == "output_norm.weight":
            data.view(np.float32)[3] += 0.01
        return data

    wrong = rewritten(path, tmp_path / "w.gguf", data=change)
    assert not verify(settings, wrong).passed


def test_verify_lists_keys_and_names_that_differ(examples: Path, tmp_path: Path) -> None:
    settings = ConvertSettings(examples / "nano-llama", tmp_path, "f16")
    path = convert(settings).paths[0]
    base = KeyValue.of("llama.rope.freq_base", ValueType.FLOAT32, 1.0)

    def change(entries: list[KeyValue]) -> list[KeyValue]:
        kept = [entry for entry in entries if entry.key != "llama.block_count"]
        return [base if entry.key == base.key else entry for entry in kept]

    wrong = rewritten(path, tmp_path / "w.gguf", metadata=change, drop="output.weight")
    result = by_name(verify(settings, wrong))
    assert result["keys"].detail == "llama.block_count is missing; llama.rope.freq_base differs"
    assert result["tensors"].detail == "output.weight is missing"
    assert "values" not in result


def test_check_token_ids_compares_two_tokenizers(examples: Path) -> None:
    encode = source_encoder(examples / "nano-llama")
    assert encode is not None
    assert check_token_ids(encode, encode).passed
    assert not check_token_ids(encode, lambda text: encode(text)[1:]).passed


def test_check_logits_compares_two_models() -> None:
    def logits(tokens: list[int]) -> np.ndarray:
        return np.random.default_rng(1).standard_normal((len(tokens), 8), np.float32)

    def off(factor: float) -> Callable[[list[int]], np.ndarray]:
        return lambda tokens: logits(tokens) * factor

    tokens, floats, quantized = [1, 2, 3], {0, 1}, {0, 12}
    assert check_logits(tokens, logits, logits, floats).passed
    assert check_logits(tokens, logits, off(1.01), floats).passed
    assert not check_logits(tokens, logits, off(1.1), floats).passed
    assert check_logits(tokens, logits, off(1.1), quantized).passed
    assert not check_logits(tokens, logits, off(2.0), quantized).passed
    assert not check_logits(tokens, logits, off(np.nan), floats).passed
    assert not check_logits(tokens, logits, lambda tokens: logits(tokens)[1:], floats).passed


def test_source_logits_come_from_transformers(examples: Path) -> None:
    logits = source_logits(examples / "nano-llama")
    if logits is None:
        pytest.skip("transformers and torch are not installed")
    assert logits([4094, 100, 200]).shape == (3, 4096)


def test_tolerance_follows_the_type() -> None:
    assert tolerance(0) < 1e-7
    assert tolerance(1) == 2**-11
    assert 0.005 < tolerance(8) < 0.01
    assert tolerance(19) <= 0.9
