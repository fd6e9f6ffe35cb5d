"""At full size, the tensors that a record expects are as many parameters as were published."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

from minitron_convert.architectures import SourceModel, read_model
from minitron_convert.checkpoint.folder import open_checkpoint

# Parameters in billions, as the Hub counts them or the name says.
PUBLISHED = {
    "Llama-3.1-Minitron-4B-Depth-Base": 4.54,
    "Llama-3.1-Minitron-4B-Width-Base": 4.51,
    "Llama-3.1-Nemotron-Nano-8B-v1": 8.03,
    "Llama-3_3-Nemotron-Super-49B-v1_5": 49.9,
    "Minitron-4B-Base": 4.19,
    "Mistral-NeMo-Minitron-8B-Base": 8.41,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31.6,
    "NVIDIA-Nemotron-3-Nano-4B-BF16": 3.97,
    "NVIDIA-Nemotron-3-Nano-4B-BF16-list-form": 3.97,
    "NVIDIA-Nemotron-3-Super-120B-A12B": 123.6,
    "NVIDIA-Nemotron-3-Ultra-550B-A55B": 550,
    "NVIDIA-Nemotron-Nano-12B-v2": 12.31,
    "NVIDIA-Nemotron-Nano-9B-v2": 8.89,
    "Nemotron-H-47B-Base-8K": 47,
    "Nemotron-H-56B-Base-8K": 56.3,
    "Nemotron-H-8B-Base-8K": 8.1,
    "Nemotron-Mini-4B-Instruct": 4.19,
}

# Feed-forward sizes of Super 49B in multiples of the hidden size, and whether the layer attends:
# (multiple, attends, layers), from the config of v1, which v1.5 shares.
SUPER_49B = (
    *[(2.625, True, 1), (5.25, True, 5), (2.625, False, 2), (5.25, True, 3), (3.28125, False, 1)],
    *[(5.25, True, 30), (1.3125, False, 1), (2.625, False, 2), (1.3125, False, 1)],
    *[(5.25, False, 1), (1.3125, False, 1), (2.625, False, 1), (1.3125, False, 3)],
    *[(5.25, True, 1), (1.3125, False, 1), (1.0, False, 2), (1.3125, False, 1), (1.0, False, 3)],
    *[(1.3125, False, 2), (0.5, False, 2), (1.0, False, 2), (0.5, False, 2), (1.0, False, 1)],
    *[(0.5, False, 2), (5.25, True, 9)],
)


def super_49b_blocks() -> list[dict[str, Any]]:
    """The layers of Super 49B as its config describes them."""
    return [
        {
            "attention": {
                "n_heads_in_group": 8 if attends else None,
                "no_op": not attends,
                "replace_with_linear": False,
            },
            "ffn": {"ffn_mult": multiple, "no_op": False},
        }
        for multiple, attends, count in SUPER_49B
        for _ in range(count)
    ]


def ultra_layers() -> list[str]:
    """The layers of Ultra: Mamba and experts in turn, and twelve that attend."""
    kinds = ["mamba", "moe"] * 48
    for place in (7, 14, 23, 32, 39, 48, 57, 64, 73, 82, 89, 98):
        kinds.insert(place, "attention")
    return kinds


# What the configs at hand lack, from NVIDIA's own code for these models (NeMo, Megatron-Bridge)
# and, for Ultra, from scripts that quote its config.
COMPLETED: dict[str, dict[str, Any]] = {
    "Llama-3_3-Nemotron-Super-49B-v1_5": {"block_configs": super_49b_blocks()},
    "Nemotron-H-47B-Base-8K": {
        "hybrid_override_pattern": "M-M-M-M-M-M-M-M-M*-M-M-M-M-M-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-"
        "M-M-M-M-M-M-M---MM---M-M*-M-M-M-M-M-"
    },
    "NVIDIA-Nemotron-3-Ultra-550B-A55B": {
        "layers_block_type": ultra_layers(),
        "vocab_size": 131072,
        "num_attention_heads": 64,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 5120,
        "moe_intermediate_size": 5120,
        "moe_shared_expert_intermediate_size": 10240,
        "moe_latent_size": 2048,
        "n_routed_experts": 512,
        "n_shared_experts": 1,
        "num_experts_per_tok": 22,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 5.0,
        "mamba_num_heads": 256,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "ssm_state_size": 128,
        "conv_kernel": 4,
        "max_position_embeddings": 262144,
        "layer_norm_epsilon": 1e-5,
    },
}


def model_of(name: str, shared: Path) -> SourceModel:
    """A published config, completed, as its architecture; without weights."""
    checkpoint = open_checkpoint(shared / "nvidia-configs" / name, vocab_only=True)
    config = {**checkpoint.config, **COMPLETED.get(name, {})}
    return read_model(replace(checkpoint, config=config))


def parameters(model: SourceModel) -> int:
    """The elements of all tensors that the model must have."""
    return sum(prod(shape) for shape, must in model.expected_tensors().values() if must)


@pytest.mark.parametrize("name", PUBLISHED)
def test_expected_tensors_give_the_published_size(name: str, shared: Path) -> None:
    model = model_of(name, shared)
    assert abs(parameters(model) / 1e9 / PUBLISHED[name] - 1) < 0.02
    assert model.hyperparameters(1)


def test_expected_tensors_of_minitron_8b_are_its_own_and_wider_heads(shared: Path) -> None:
    model = model_of("Minitron-8B-Base", shared)
    assert model.arch == "jais2"
    size = model.size
    wider = (160 - size.head_dim) * 2 * (size.heads + size.kv_heads) * size.hidden
    assert parameters(model) - size.layers * wider == 8_271_699_968


def test_expected_tensors_of_nemotron_h_4b_are_as_many_as_published(shared: Path) -> None:
    # 4.49 billion parameters; the config at hand does not say that convolutions have biases
    tensors = model_of("Nemotron-H-4B-Base-8K", shared).expected_tensors()
    assert sum(must or "conv1d.bias" in name for name, (_, must) in tensors.items()) == 311


def test_published_sizes_cover_every_config(shared: Path) -> None:
    found = {path.name for path in (shared / "nvidia-configs").iterdir()}
    assert found == {*PUBLISHED, "Minitron-8B-Base", "Nemotron-H-4B-Base-8K"}
