"""Compute the logits of checkpoints with transformers, in float32.

    python benchmarks/peers/transformers_logits.py TOKENS FOLDER…

TOKENS is a .npy file of token ids. Into each folder come logits.npy [tokens, vocabulary] and
version.txt; what cannot be computed is printed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokens = torch.tensor(np.load(sys.argv[1]))[None]
    for folder in map(Path, sys.argv[2:]):
        try:
            with torch.no_grad():
                logits = read(folder)(tokens).logits[0]
            np.save(folder / "logits.npy", logits.numpy())
            (folder / "version.txt").write_text(transformers.__version__)
        except Exception as error:  # whatever a class raises is the answer
            print(f"{folder.name}: {error}"[:200], file=sys.stderr)


def read(folder: Path) -> Any:
    """The model of a checkpoint."""
    config = json.loads((folder / "config.json").read_text())
    if config["architectures"] == ["DeciLMForCausalLM"]:
        return deci(folder, config)
    more = {}
    if config.get("quantization_config", {}).get("quant_method") == "mxfp4":
        more["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        dtype=torch.float32,
        attn_implementation="eager",
        **more,
    )
    return model.float().eval()


def deci(folder: Path, config: dict[str, Any]) -> Any:
    """DeciLM, whose class is not in transformers: Llama's layers, each with sizes of its own."""
    from safetensors.torch import load_file

    common = {
        key: config[key]
        for key in ("hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers")
    }
    common |= {key: config[key] for key in ("rms_norm_eps", "rope_theta", "rope_scaling")}
    common["max_position_embeddings"] = config["max_position_embeddings"]
    whole = llama_config(common, intermediate_size=8, num_key_value_heads=1)
    model = transformers.LlamaForCausalLM(whole)
    for i, block in enumerate(config["block_configs"]):
        attention, ffn = block["attention"], block["ffn"]
        width = (
            0 if ffn["no_op"] else -(-int(2 * ffn["ffn_mult"] * config["hidden_size"] / 3) // 256)
        )
        groups = attention["n_heads_in_group"] or config["num_attention_heads"]
        own = llama_config(
            common,
            intermediate_size=max(1, 256 * width),
            num_key_value_heads=config["num_attention_heads"] // groups,
        )
        layer = transformers.models.llama.modeling_llama.LlamaDecoderLayer(own, i)
        if attention["no_op"]:
            layer.self_attn = Nothing(two=True)
            layer.input_layernorm = torch.nn.Identity()
        if ffn["no_op"]:
            layer.mlp = Nothing(two=False)
            layer.post_attention_layernorm = torch.nn.Identity()
        model.model.layers[i] = layer
    weights = {
        name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    model.load_state_dict(weights, strict=True)
    return model.float().eval()


def llama_config(common: dict[str, Any], **sizes: int) -> Any:
    """A config of Llama that computes attention plainly."""
    config = transformers.LlamaConfig(**common, **sizes)
    config._attn_implementation = "eager"
    return config


class Nothing(torch.nn.Module):
    """What a layer without attention or without a feed-forward network adds: zeros."""

    def __init__(self, *, two: bool) -> None:
        super().__init__()
        self.two = two

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> Any:
        zeros = torch.zeros_like(hidden_states)
        return (zeros, None) if self.two else zeros


if __name__ == "__main__":
    main()
