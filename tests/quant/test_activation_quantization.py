"""Activation quantization: the noise of inputs rounded to 8 bits, and its cost."""

from pathlib import Path

import numpy as np
import pytest

from helpers.support import EXAMPLES
from minitron_core.gguf import TYPE_ID, TensorInfo, open_gguf
from minitron_core.progress import Event
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings, chunk_text, read_text
from minitron_quant.mixed_precision.activation_quantization import (
    LARGE,
    SMALL,
    RoundedInputs,
    block_of,
    rounding_costs,
    rounding_noise,
)
from minitron_quant.mixed_precision.costs import CostInputs, sampled_tasks
from minitron_quant.mixed_precision.probe import round_trip

CHUNKS = ChunkSettings(n_ctx=64, n_batch=64)


def test_rounding_costs_are_those_of_noise_on_the_inputs() -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal((5, 64)).astype(np.float32)
    noise = {SMALL: random.random(64), LARGE: random.random(64)}
    disturbed = random.standard_normal((50_000, 64)) * np.sqrt(noise[LARGE])
    small, large = RoundedInputs(noise)(weights, weights, 0)
    assert large == pytest.approx(((disturbed @ weights.T) ** 2).sum(axis=1).mean(), rel=0.02)
    assert small == pytest.approx(float((weights**2 @ noise[SMALL]).sum()))


def test_rounding_noise_is_that_of_ggml() -> None:
    """In q8_0 blocks, which kernels turn inputs into; the largest of 32 itself stays exact."""
    rows = np.random.default_rng(1).standard_t(4, (4000, 64)).astype(np.float32)
    info = TensorInfo("x", (64, 4000), 0, 0, rows.nbytes)
    rounded = round_trip(info, rows.view(np.uint8).reshape(-1), TYPE_ID["q8_0"], None, 1)
    measured = ((rounded.view(np.float32).reshape(rows.shape) - rows) ** 2).mean()
    peaks = np.abs(rows).reshape(4000, 2, SMALL).max(axis=2)
    assert (peaks**2).mean() / (12 * 127**2) == pytest.approx(measured, rel=0.05)


def test_rounding_noise_of_a_model_covers_its_weights(nano_nemotron: Path) -> None:
    shard = open_gguf(nano_nemotron)
    with open_model(ModelSettings(nano_nemotron, n_ctx=64)) as model:
        chunks = chunk_text(model, read_text(EXAMPLES / "held-out.txt"), CHUNKS, "text")[:2]
        events: list[Event] = []
        noise = rounding_noise(model, chunks, CHUNKS, events.append)
    assert [event.done for event in events] == [0, 1, 2]
    tensors = {i.name: (shard, i) for i in shard.tensors if len(i.shape) > 1}
    assert noise.keys() == tensors.keys() - {"token_embd.weight"}
    for name, by_block in noise.items():
        assert by_block[SMALL].shape == (tensors[name][1].shape[0],)
        # the largest of a large block is at least that of any small one in it
        assert (by_block[LARGE] >= by_block[SMALL] * (1 - 1e-6)).all() and by_block[SMALL].min() > 0
    some = {name: tensors[name] for name in ("token_embd.weight", "blk.1.attn_k.weight")}
    found = rounding_costs(sampled_tasks(CostInputs(some, {}, {}, np.ones(4096))), noise, threads=1)
    assert found.keys() == {"blk.1.attn_k.weight"}
    info = tensors["blk.1.attn_k.weight"][1]
    weights = shard.data(info).view(np.float16).reshape(info.rows, -1).astype(np.float64)
    wanted = float(((weights**2) @ noise[info.name][LARGE]).sum())
    assert found[info.name][LARGE] == pytest.approx(wanted, rel=1e-4)


def test_block_of_depends_on_type_and_device() -> None:
    assert block_of(TYPE_ID["q4_K"], "CPU") == block_of(TYPE_ID["iq3_s"], "CPU") == LARGE
    assert block_of(TYPE_ID["iq4_nl"], "CPU") == block_of(TYPE_ID["q8_0"], "CPU") == SMALL
    assert block_of(TYPE_ID["q4_K"], "CUDA0 (NVIDIA)") == SMALL
