"""The shape of every kind of tensor, in numpy's order, in the sizes of its layer.

gguf-py's map names tensors; what shape each must have is known here, and is what tells a damaged
or mislabelled checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from minitron_convert.architectures.model_tensor import Sizes

Shape = tuple[str | int, ...]

SHAPES: dict[str, Shape] = {
    "token_embd": ("vocab", "hidden"),
    "output": ("vocab", "hidden"),
    "output_norm": ("hidden",),
    "token_embd_norm": ("hidden",),
    "attn_norm": ("hidden",),
    "post_attention_norm": ("hidden",),
    "ffn_norm": ("hidden",),
    "post_ffw_norm": ("hidden",),
    "attn_q": ("queries", "hidden"),
    "attn_k": ("keys", "hidden"),
    "attn_v": ("keys", "hidden"),
    "attn_qkv": ("qkv", "hidden"),
    "attn_output": ("hidden", "queries"),
    "attn_q_norm": ("head",),
    "attn_k_norm": ("head",),
    "attn_sinks": ("heads",),
    "ffn_gate": ("ffn", "hidden"),
    "ffn_up": ("ffn", "hidden"),
    "ffn_down": ("hidden", "ffn"),
    # experts
    "ffn_gate_inp": ("experts", "hidden"),
    "exp_probs_b.bias": ("experts",),
    "ffn_gate_exps": ("experts", "expert_ffn", "expert_hidden"),
    "ffn_up_exps": ("experts", "expert_ffn", "expert_hidden"),
    "ffn_down_exps": ("experts", "expert_hidden", "expert_ffn"),
    "ffn_gate_inp_shexp": (1, "hidden"),
    "ffn_gate_shexp": ("shared_ffn", "hidden"),
    "ffn_up_shexp": ("shared_ffn", "hidden"),
    "ffn_down_shexp": ("hidden", "shared_ffn"),
    "ffn_latent_down": ("expert_hidden", "hidden"),
    "ffn_latent_up": ("hidden", "expert_hidden"),
    # state-space layers (Mamba2)
    "ssm_in": ("ssm_projections", "hidden"),
    "ssm_conv1d": ("ssm_channels", "ssm_kernel"),
    "ssm_dt.bias": ("ssm_heads",),
    "ssm_a": ("ssm_heads", 1),
    "ssm_d": ("ssm_heads", 1),
    "ssm_norm": ("ssm_groups", "ssm_group_size"),
    "ssm_out": ("hidden", "ssm_inner"),
    # short convolutions (LFM2)
    "shortconv.conv": ("hidden", "conv_kernel"),
    "shortconv.in_proj": ("conv_projections", "hidden"),
    "shortconv.out_proj": ("hidden", "hidden"),
    # latent attention (DeepSeek)
    "attn_q_a": ("q_latent", "hidden"),
    "attn_q_a_norm": ("q_latent",),
    "attn_q_b": ("queries", "q_latent"),
    "attn_kv_a_mqa": ("kv_latent_rope", "hidden"),
    "attn_kv_a_norm": ("kv_latent",),
    "attn_k_b": ("heads", "kv_latent", "key_plain"),
    "attn_v_b": ("heads", "value_head", "kv_latent"),
    # layers that predict a further token
    "nextn.eh_proj": ("hidden", "two_hidden"),
    "nextn.enorm": ("hidden",),
    "nextn.hnorm": ("hidden",),
    "nextn.embed_tokens": ("vocab", "hidden"),
    "nextn.shared_head_head": ("vocab", "hidden"),
    "nextn.shared_head_norm": ("hidden",),
}

# Kinds that stay f32 whatever the type of the file, beside norms, biases and vectors (what
# llama.cpp's converter keeps, of the kinds above).
FULL_PRECISION = frozenset({"ffn_gate_inp", "ffn_gate_inp_shexp", "ssm_conv1d", "shortconv.conv"})

_BLOCK = re.compile(r"blk\.(\d+)\.")


def block_of(gguf_name: str) -> int | None:
    """The number of a tensor's layer in a GGUF name, None for one outside the layers."""
    found = _BLOCK.match(gguf_name)
    return int(found[1]) if found else None


def kind_of(gguf_name: str) -> str:
    """A tensor's name without its layer and its `.weight`: attn_q, attn_q.bias, ssm_a."""
    return _BLOCK.sub("", gguf_name).removesuffix(".weight")


def expected_shape(kind: str, sizes: Sizes, own: Mapping[str, Shape]) -> tuple[int, ...]:
    """The shape of a tensor of this kind; `own` replaces entries of the table."""
    shape = own.get(kind) or SHAPES.get(kind)
    if shape is None:
        weight = kind.removesuffix(".bias")
        shape = own.get(weight) or SHAPES[weight]
        shape = shape[:-1] or shape  # a bias has its matrix's rows, that of a norm its elements
    return tuple(size if isinstance(size, int) else sizes[size] for size in shape)
