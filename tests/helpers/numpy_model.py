"""The models' networks in float64, straight from a checkpoint: what every conversion must compute.

Formulas: transformers' modeling_llama.py and modeling_nemotron.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def logits(config: Mapping[str, Any], weights: Mapping[str, Array], tokens: list[int]) -> Array:
    """Logits [tokens, vocabulary] of one sequence."""
    nemotron = config["model_type"] == "nemotron"
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    x = weights["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        y = norm(x, weights, f"{layer}.input_layernorm", config)
        q, k, v = (
            split(linear(y, weights, f"{layer}.self_attn.{name}_proj"), count)
            for name, count in (("q", heads), ("k", kv), ("v", kv))
        )
        q, k = rotate(q, config), rotate(k, config)
        x = x + linear(attend(q, k, v), weights, f"{layer}.self_attn.o_proj")
        y = norm(x, weights, f"{layer}.post_attention_layernorm", config)
        up = linear(y, weights, f"{layer}.mlp.up_proj")
        if nemotron:
            hidden = np.maximum(up, 0) ** 2
        else:
            gate = linear(y, weights, f"{layer}.mlp.gate_proj")
            hidden = gate / (1 + np.exp(-gate)) * up
        x = x + linear(hidden, weights, f"{layer}.mlp.down_proj")
    x = norm(x, weights, "model.norm", config)
    output = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return x @ output.T


def linear(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    """A matrix, with its bias if there is one."""
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", np.zeros(()))


def norm(x: Array, weights: Mapping[str, Array], name: str, config: Mapping[str, Any]) -> Array:
    """RMS norm, or LayerNorm1p for Nemotron."""
    weight = weights[f"{name}.weight"]
    if config["model_type"] != "nemotron":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["norm_eps"])
    return x * (1 + weight) + weights[f"{name}.bias"]


def split(x: Array, heads: int) -> Array:
    """[tokens, heads × size] → [heads, tokens, size]."""
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def rotate(x: Array, config: Mapping[str, Any]) -> Array:
    """Rotary positions on the first dimensions of each head."""
    size = x.shape[-1]
    share = config.get("partial_rotary_factor", 0.5) if config["model_type"] == "nemotron" else 1
    n = int(size * share) // 2
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = settings.get("rope_theta") or config["rope_theta"]
    frequencies = theta ** (-np.arange(n) / n)
    if settings.get("rope_type", settings.get("type")) == "linear":
        frequencies = frequencies / settings["factor"]
    if settings.get("rope_type") == "llama3":
        frequencies = stretch(frequencies, settings)
    angles = np.arange(x.shape[1])[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def stretch(frequencies: Array, settings: Mapping[str, Any]) -> Array:
    """llama3's scaling: long waves are stretched, short ones are kept."""
    waves = settings["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    smooth = np.clip((waves - low) / (high - low), 0, 1)
    return frequencies * ((1 - smooth) / settings["factor"] + smooth)


def attend(q: Array, k: Array, v: Array) -> Array:
    """Causal attention; each head of k and v serves several of q."""
    group = len(q) // len(k)
    k, v = np.repeat(k, group, 0), np.repeat(v, group, 0)
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    future = np.triu(np.ones(scores.shape[1:], bool), 1)
    scores = np.where(future, -np.inf, scores)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares = shares / shares.sum(-1, keepdims=True)
    return (shares @ v).swapaxes(0, 1).reshape(q.shape[1], -1)
