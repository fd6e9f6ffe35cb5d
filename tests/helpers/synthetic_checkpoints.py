"""Small checkpoints of every kind, the same at each run: the tests' and the recorder's material.

`examples` is the folder with nano-llama and nano-nemotron, whose tokenizers they take.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 4094,
    "eos_token_id": 4095,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
NEMOTRON = {
    "architectures": ["NemotronForCausalLM"],
    "model_type": "nemotron",
    "hidden_act": "relu2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "norm_eps": 1e-5,
    "rope_theta": 10000,
    "partial_rotary_factor": 0.5,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

WIDE = {"hidden_size": 128, "num_attention_heads": 6, "head_dim": 32}

# name → (base config, changes, data type of the weights, number of files)
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], str, int]] = {
    "llama-tied": (LLAMA, {"tie_word_embeddings": True}, "F16", 1),
    "llama-bias": (LLAMA, {"attention_bias": True, "mlp_bias": True}, "F32", 1),
    "llama-linear": (LLAMA, {"rope_scaling": {"type": "linear", "factor": 4.0}}, "BF16", 1),
    "llama-yarn": (
        LLAMA,
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 2048,
                "beta_fast": 30.0,
                "beta_slow": 2.0,
                "attention_factor": 1.25,
            }
        },
        "BF16",
        1,
    ),
    "llama-wide-heads": (
        LLAMA,
        {"rope_theta": None, "rope_parameters": {**LLAMA3, "rope_theta": 250000.0}, "head_dim": 32},
        "BF16",
        3,
    ),
    "mistral": (
        LLAMA,
        {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "activation": "silu",
            "sliding_window": None,
            "head_dim": 32,
            "rope_theta": 1000000.0,
        },
        "BF16",
        1,
    ),
    "nemotron-bias": (NEMOTRON, {"attention_bias": True, "mlp_bias": True}, "F32", 1),
    "nemotron-f16": (NEMOTRON, {"head_dim": 16}, "F16", 2),
    "nemotron-old-keys": (
        NEMOTRON,
        {"partial_rotary_factor": None, "rope_percent": 0.5, "kv_channels": 16},
        "BF16",
        1,
    ),
    "nemotron-linear": (
        NEMOTRON,
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "BF16",
        1,
    ),
}

# Models that llama.cpp's converter gets wrong or refuses: made by ours alone.
BEYOND: dict[str, tuple[dict[str, Any], dict[str, Any], str, int]] = {
    "nemotron-wide": (NEMOTRON, WIDE, "BF16", 1),
    "nemotron-wide-bias": (NEMOTRON, {**WIDE, "attention_bias": True, "mlp_bias": True}, "F32", 1),
    "nemotron-narrow": (NEMOTRON, {**WIDE, "num_attention_heads": 2}, "BF16", 1),
    "nemotron-tied": (NEMOTRON, {"tie_word_embeddings": True}, "BF16", 1),
}
ALL = {**VARIANTS, **BEYOND}


def make_config(name: str) -> dict[str, Any]:
    """The config of a variant."""
    base, changes, _, _ = ALL[name]
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def make_checkpoint(name: str, folder: Path, examples: Path) -> Path:
    """Write the checkpoint of a variant into `folder` / `name`."""
    folder = folder / name
    folder.mkdir(parents=True)
    config = make_config(name)
    _, _, dtype, files = ALL[name]
    (folder / "config.json").write_text(json.dumps(config))
    nemotron = config["model_type"] == "nemotron"
    source = examples / ("nano-nemotron" if nemotron else "nano-llama")
    for path in source.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    write_weights(folder, make_shapes(config), dtype, files)
    return folder


def make_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a model with this config."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config.get("kv_channels") or hidden // heads
    nemotron = config["model_type"] == "nemotron"
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden)
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    norms = ["model.norm"]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        attention, mlp = config.get("attention_bias"), config.get("mlp_bias")
        linear = {
            "self_attn.q_proj": (heads * head_dim, hidden, attention),
            "self_attn.k_proj": (kv * head_dim, hidden, attention),
            "self_attn.v_proj": (kv * head_dim, hidden, attention),
            "self_attn.o_proj": (hidden, heads * head_dim, attention),
            "mlp.up_proj": (ffn, hidden, mlp),
            "mlp.down_proj": (hidden, ffn, mlp),
        }
        if not nemotron:
            linear["mlp.gate_proj"] = (ffn, hidden, mlp)
        for name, (rows, columns, bias) in linear.items():
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{layer}.{name}.bias"] = (rows,)
    for name in norms:
        shapes[f"{name}.weight"] = (hidden,)
        if nemotron:
            shapes[f"{name}.bias"] = (hidden,)
    return shapes


def make_tensor(name: str, shape: tuple[int, ...], dtype: str) -> bytes:
    """Random weights that depend on the tensor's name only."""
    values = np.random.default_rng(list(name.encode())).standard_normal(shape, np.float32) * 0.1
    if dtype == "F32":
        return values.tobytes()
    if dtype == "F16":
        return values.astype(np.float16).tobytes()
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def write_weights(
    folder: Path, shapes: dict[str, tuple[int, ...]], dtype: str, files: int = 1
) -> None:
    """Write the tensors into one safetensors file, or several with their index."""
    names = sorted(shapes)
    if files == 1:
        write_safetensors(folder / "model.safetensors", shapes, names, dtype)
        return
    weight_map = {}
    for i in range(files):
        path = folder / f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        part = names[i::files]
        write_safetensors(path, shapes, part, dtype)
        weight_map |= dict.fromkeys(part, path.name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_safetensors(
    path: Path, shapes: dict[str, tuple[int, ...]], names: list[str], dtype: str
) -> None:
    """Write the named tensors into one file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    offset = 0
    for name in names:
        blobs.append(make_tensor(name, shapes[name], dtype))
        end = offset + len(blobs[-1])
        header[name] = {
            "dtype": dtype,
            "shape": list(shapes[name]),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"".join(blobs))
