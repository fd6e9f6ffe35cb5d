"""What a context holds: saved, restored, shifted; and adapters on the weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.instruction_sets import recorded, same_answer
from minitron_core.errors import Damaged, NotFound
from minitron_core.gguf import F32, GgufWriter, KeyValue, TensorSpec, ValueType, open_gguf
from minitron_engine.generation.generate import generate, prompt_tokens
from minitron_engine.generation.prompt_cache import CacheKey, dump, model_hash, restore
from minitron_engine.generation.sampling import SamplingSettings, settings_for
from minitron_engine.generation.sequence import Sequence
from minitron_engine.generation.steps import GenerationSettings, collect
from minitron_engine.llama.adapters import Adapter, apply_adapters
from minitron_engine.llama.context import open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model

SETTINGS = ContextSettings(n_ctx=256, n_batch=64)
TARGET = "blk.1.attn_q.weight"


def test_shift_equals_llama_completion(nano_llama: Path, nano_nemotron: Path) -> None:
    models = recorded("sampling.json")["models"]
    for entry, path in zip(models.values(), (nano_llama, nano_nemotron), strict=True):
        shift = entry["shift"]
        with (
            open_model(ModelSettings(path)) as model,
            open_context(model, ContextSettings(shift["context"], 2048)) as context,
        ):
            sampling = settings_for(model, {"seed": 31})
            settings = GenerationSettings(sampling, shift["length"], context_shift=True, keep=3)
            same_answer(context, settings, prompt_tokens(model, shift["prompt"]), shift)


def test_prompt_cache_restores_or_says_why_not(nano_llama: Path, nano_nemotron: Path) -> None:
    with open_model(ModelSettings(nano_llama)) as model, open_context(model, SETTINGS) as context:
        tokens = prompt_tokens(model, "The old house stood in the room, and the door")
        key = CacheKey(model_hash(nano_llama), "f16 f16")
        settings = GenerationSettings(SamplingSettings(seed=4), 8)
        sequence = Sequence(context)
        first = collect(generate(context, tokens, settings, sequence=sequence))
        data = dump(sequence, key)
        sequence = Sequence(context)
        assert restore(sequence, data, key) == ""
        assert sequence.tokens == [*tokens.tolist(), *first.tokens[:-1]]
        second = collect(generate(context, tokens, settings, sequence=sequence))
        assert (second.timings.reused_tokens, second.tokens) == (len(tokens) - 1, first.tokens)

        other = CacheKey(model_hash(nano_nemotron), "f16 f16")
        for wrong, reason in (
            (restore(Sequence(context), data, other), "another model"),
            (restore(Sequence(context), data[:-1], key), "damaged"),
            (restore(Sequence(context), b"GGUF" + data, key), "not a prompt cache"),
            (restore(Sequence(context), b"", key), "not a prompt cache"),
        ):
            assert reason in wrong


def test_model_hash_sees_every_byte_of_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(1000))
    before = model_hash(path)
    path.write_bytes(bytes(999) + b"\1")
    assert model_hash(path) != before
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    first.write_bytes(b"a")
    second.write_bytes(b"b")
    before = model_hash(first)
    second.write_bytes(b"c")
    assert model_hash(first) != before


def write_adapter(path: Path, a: Any, b: Any, alpha: float, architecture: str = "llama") -> Path:
    keys = [
        KeyValue.of("general.architecture", ValueType.STRING, architecture),
        KeyValue.of("general.type", ValueType.STRING, "adapter"),
        KeyValue.of("adapter.type", ValueType.STRING, "lora"),
        KeyValue.of("adapter.lora.alpha", ValueType.FLOAT32, alpha),
    ]
    specs = [
        TensorSpec(f"{TARGET}.lora_a", a.shape[::-1], F32),
        TensorSpec(f"{TARGET}.lora_b", b.shape[::-1], F32),
    ]
    with GgufWriter(path, keys, specs) as writer:
        writer.write(a)
        writer.write(b)
    return path


def last_logits(path: Path, *adapters: Adapter) -> Any:
    with open_model(ModelSettings(path)) as model, open_context(model, SETTINGS) as context:
        apply_adapters(context, adapters)
        sequence = Sequence(context)
        sequence.append(prompt_tokens(model, "It was a dark night").tolist())
        return context.logits(1)[0].copy()


def test_apply_adapters_equals_merged_weights(nano_llama: Path, tmp_path: Path) -> None:
    file = open_gguf(nano_llama)
    info = next(info for info in file.tensors if info.name == TARGET)
    columns, rows = info.shape
    random, rank = np.random.default_rng(3), 4
    weight = np.frombuffer(file.data(info), np.float16).reshape(rows, columns).astype(np.float32)
    adapters, merged = [], weight.copy()
    for number, (scale, alpha) in enumerate(((1.0, 8.0), (0.5, 2.0))):
        a = random.standard_normal((rank, columns), np.float32) * 0.4
        b = random.standard_normal((rows, rank), np.float32) * 0.4
        adapters.append(Adapter(write_adapter(tmp_path / f"{number}.gguf", a, b, alpha), scale))
        merged += scale * alpha / rank * (b @ a)
    specs = [TensorSpec(i.name, i.shape, F32 if i.name == TARGET else i.type) for i in file.tensors]
    path = tmp_path / "merged.gguf"
    with GgufWriter(path, list(file.metadata.values()), specs) as writer:
        for tensor in file.tensors:
            writer.write(merged if tensor.name == TARGET else file.data(tensor))
    with_adapters, of_merged = last_logits(nano_llama, *adapters), last_logits(path)
    np.testing.assert_allclose(with_adapters, of_merged, rtol=0, atol=0.1)
    assert np.abs(last_logits(nano_llama) - of_merged).max() > 0.5


def test_apply_adapters_refuses_another_models(nano_llama: Path, tmp_path: Path) -> None:
    ones = np.ones((2, 8), np.float32)
    for path, error in (
        (write_adapter(tmp_path / "a.gguf", ones, ones.T.copy(), 1.0), Damaged),
        (write_adapter(tmp_path / "b.gguf", ones, ones.T.copy(), 1.0, "gpt2"), Damaged),
        (tmp_path / "none.gguf", NotFound),
    ):
        with pytest.raises(error):
            last_logits(nano_llama, Adapter(path))
