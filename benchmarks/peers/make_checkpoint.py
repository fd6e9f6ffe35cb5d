r"""Make a checkpoint of random weights with the exact shape of a published model.

    python benchmarks/peers/make_checkpoint.py CONFIG.json TOKENIZER_FOLDER OUT [--layers N] \
        [--hidden N]

With --hidden it is a small model that has the published one's vocabulary and proportions.
experts.json beside this script has the shape of Qwen3-30B-A3B, whose tokenizer it needs; six
layers of it are 8.7 GB. Hybrids (nemotron_h) without experts work too. The weights are bf16,
normally distributed with a deviation of 0.02, in shards of at most 5 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

SHARD_BYTES = 5_000_000_000
POOL = 1 << 24  # distinct random values; tensors are windows into them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the config says")
    parser.add_argument("--hidden", type=int, help="a smaller width than the config says")
    options = parser.parse_args()
    config = json.loads(options.config.read_text())
    if options.hidden:
        narrow(config, options.hidden)
    config["num_hidden_layers"] = options.layers or config["num_hidden_layers"]
    if "hybrid_override_pattern" in config:
        pattern = config["hybrid_override_pattern"]
        config["hybrid_override_pattern"] = pattern[: config["num_hidden_layers"]]
    options.out.mkdir(parents=True)
    for path in options.tokenizer.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copyfile(path, options.out / path.name)
    (options.out / "config.json").write_text(json.dumps(config))
    hybrid = config["model_type"] == "nemotron_h"
    write_shards(options.out, hybrid_shapes(config) if hybrid else shapes(config))


def narrow(config: dict, hidden: int) -> None:
    """Scale the width, with heads of 64 of which four share their keys and values."""
    config["intermediate_size"] = config["intermediate_size"] * hidden // config["hidden_size"]
    config |= {"hidden_size": hidden, "head_dim": 64, "num_attention_heads": hidden // 64}
    config["num_key_value_heads"] = max(1, hidden // 64 // 4)
    if "mamba_num_heads" in config:
        config |= {"mamba_num_heads": hidden // 32, "mamba_head_dim": 64}


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The tensors of the model."""
    hidden, ffn, heads = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    head_dim = config.get("head_dim") or hidden // heads
    kv = config.get("num_key_value_heads", heads) * head_dim
    nemotron = config["model_type"] == "nemotron"
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    norms = ["model.norm"]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        found[f"{layer}.self_attn.q_proj.weight"] = (heads * head_dim, hidden)
        found[f"{layer}.self_attn.k_proj.weight"] = (kv, hidden)
        found[f"{layer}.self_attn.v_proj.weight"] = (kv, hidden)
        found[f"{layer}.self_attn.o_proj.weight"] = (hidden, heads * head_dim)
        if config["model_type"] == "qwen3_moe":
            norms += [f"{layer}.self_attn.q_norm", f"{layer}.self_attn.k_norm"]
            found |= expert_shapes(f"{layer}.mlp", config)
            continue
        found[f"{layer}.mlp.up_proj.weight"] = (ffn, hidden)
        found[f"{layer}.mlp.down_proj.weight"] = (hidden, ffn)
        if not nemotron:
            found[f"{layer}.mlp.gate_proj.weight"] = (ffn, hidden)
    for norm in norms:
        of_heads = norm.endswith(("q_norm", "k_norm"))
        found[f"{norm}.weight"] = (head_dim if of_heads else hidden,)
        if nemotron:
            found[f"{norm}.bias"] = (hidden,)
    return found


def hybrid_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The tensors of a model of Mamba-2, attention and feed-forward layers, as its pattern says."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    heads, kv = (
        config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads")
    )
    inner = config["mamba_num_heads"] * config["mamba_head_dim"]
    convolved = inner + 2 * config["n_groups"] * config["ssm_state_size"]
    kinds: dict[str, dict[str, tuple[int, ...]]] = {
        "-": {"up_proj.weight": (ffn, hidden), "down_proj.weight": (hidden, ffn)},
        "*": {
            "q_proj.weight": (heads, hidden),
            "k_proj.weight": (kv, hidden),
            "v_proj.weight": (kv, hidden),
            "o_proj.weight": (hidden, heads),
        },
        "M": {
            **dict.fromkeys(("A_log", "D", "dt_bias"), (config["mamba_num_heads"],)),
            "conv1d.weight": (convolved, 1, config["conv_kernel"]),
            "conv1d.bias": (convolved,),
            "in_proj.weight": (inner + convolved + config["mamba_num_heads"], hidden),
            "norm.weight": (inner,),
            "out_proj.weight": (hidden, inner),
        },
    }
    found: dict[str, tuple[int, ...]] = {
        "backbone.embeddings.weight": (config["vocab_size"], hidden),
        "backbone.norm_f.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    for i, kind in enumerate(config["hybrid_override_pattern"]):
        layer = f"backbone.layers.{i}"
        found[f"{layer}.norm.weight"] = (hidden,)
        found |= {f"{layer}.mixer.{name}": shape for name, shape in kinds[kind].items()}
    return found


def expert_shapes(prefix: str, config: dict) -> dict[str, tuple[int, ...]]:
    """The router and the experts of a layer."""
    hidden, ffn, count = (
        config[key] for key in ("hidden_size", "moe_intermediate_size", "num_experts")
    )
    found: dict[str, tuple[int, ...]] = {f"{prefix}.gate.weight": (count, hidden)}
    for expert in range(count):
        found[f"{prefix}.experts.{expert}.gate_proj.weight"] = (ffn, hidden)
        found[f"{prefix}.experts.{expert}.up_proj.weight"] = (ffn, hidden)
        found[f"{prefix}.experts.{expert}.down_proj.weight"] = (hidden, ffn)
    return found


def write_shards(folder: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Write the tensors and, if they need several files, their index."""
    groups: list[list[str]] = [[]]
    used = 0
    for name in sorted(tensors):
        size = 2 * int(np.prod(tensors[name]))
        if groups[-1] and used + size > SHARD_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    pool = np.random.default_rng(0).standard_normal(POOL, np.float32) * np.float32(0.02)
    values = (pool.view(np.uint32) >> 16).astype(np.uint16)
    weight_map = {}
    for i, group in enumerate(groups):
        file = "model.safetensors"
        if len(groups) > 1:
            file = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        write_file(folder / file, {name: tensors[name] for name in group}, values)
        weight_map |= dict.fromkeys(group, file)
    if len(groups) > 1:
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(index)


def write_file(path: Path, tensors: dict[str, tuple[int, ...]], values: np.ndarray) -> None:
    """Write one safetensors file."""
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for number, shape in enumerate(tensors.values()):
            left = int(np.prod(shape))
            offset = number * 7919 % len(values)
            while left:
                part = values[offset : offset + left]
                file.write(part.data)
                left -= len(part)
                offset = 0


if __name__ == "__main__":
    main()
