"""State-space layers, experts and layers of further tokens: calibrated, or told why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.support import beginning
from helpers.tiny_checkpoints import make_checkpoint
from minitron_convert.convert import ConvertSettings, convert
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings
from minitron_quant.covariance.input_hook import find_inputs
from minitron_quant.gptq.estimate import planned_gptq
from minitron_quant.levels import level_named
from minitron_quant.mixed_precision.measure import (
    SensitivitySettings,
    measure_sensitivity,
    quantizable,
)
from minitron_quant.model_files import open_model_files
from minitron_quant.quantize.prepare import QuantizeSettings, prepare


def converted(name: str, folder: Path) -> Path:
    """The file of a tiny checkpoint."""
    return convert(ConvertSettings(make_checkpoint(name, folder), folder)).paths[0]


def test_prepare_names_experts_that_gptq_has_no_inputs_of(tmp_path: Path) -> None:
    model = converted("qwen3moe", tmp_path)
    refiner = planned_gptq("independent", ["text.txt"], open_model_files(model))
    job = prepare(QuantizeSettings(model, (level_named("Q4_0"),), tmp_path), refiner)
    (note,) = (note for note in job.notes if "covariance" in note)
    assert note.startswith("the covariance has no entry for blk.0.ffn_down_exps.weight")
    assert note.endswith("encoded without importance")


@pytest.mark.parametrize("name", ["deepseek2", "nemotron-3-nano-30b"])
def test_find_inputs_leaves_out_experts_and_heads(name: str, tmp_path: Path) -> None:
    model = converted(name, tmp_path)
    shapes = {info.name: info.shape for info in open_model_files(model)[0].tensors}
    with open_model(ModelSettings(model)) as loaded:
        taken_by = find_inputs(loaded).taken_by
    assert {len(shapes[weight]) for weight in taken_by} == {2}
    stacked = {
        "deepseek2": "blk.1.attn_k_b.weight",
        "nemotron-3-nano-30b": "blk.1.ffn_up_exps.weight",
    }
    assert len(shapes[stacked[name]]) == 3
    assert "blk.0.ssm_in.weight" in taken_by or name == "deepseek2"


def test_quantizable_leaves_out_rows_that_no_block_fits(tmp_path: Path) -> None:
    found = quantizable(open_model_files(converted("deepseek2", tmp_path)))
    assert "blk.0.attn_q_a.weight" in found
    assert "blk.0.attn_k_b.weight" not in found  # rows of 16


def test_measure_sensitivity_takes_further_layers_for_their_kind(
    tmp_path: Path, few_types: None
) -> None:
    model = converted("nemotron-3-super-120b", tmp_path)
    chunks = ChunkSettings(n_ctx=32, n_batch=32, limit=8)
    text = beginning(tmp_path, 2000)
    settings = SensitivitySettings(model, text, tmp_path / "s.json", tokens=64, chunks=chunks)
    found = measure_sensitivity(settings)
    assert found.complete and found.chunks == 2
    measured = {name: tensor.divergences for name, tensor in found.tensors.items()}
    # block 6 predicts a further token; of the layers that llama.cpp computes, only 3 attends
    alphas = [found.tensors[f"blk.{layer}.attn_k.weight"].alpha for layer in (6, 3)]
    assert alphas[0] == pytest.approx(alphas[1]) and alphas[1] > 0
    assert measured["blk.6.nextn.eh_proj.weight"] != [0, 0]
