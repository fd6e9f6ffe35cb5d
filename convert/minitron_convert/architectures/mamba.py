"""State-space layers (Mamba2), which hybrids have beside attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minitron_convert.architectures.keys import first
from minitron_convert.architectures.model_tensor import (
    as_column,
    in_state_groups,
    negative_exp,
    without_middle,
)
from minitron_convert.architectures.record import Key, TensorMapping, needs

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel

# Configs write each number with the prefix mamba_ or without.
CONV_KERNEL = ("conv_kernel", "d_conv", "mamba_conv_kernel", "mamba_d_conv")
_STATE_SIZE = ("ssm_state_size", "state_size", "d_state", "state_dim")
STATE_SIZE = (*_STATE_SIZE, *(f"mamba_{name}" for name in _STATE_SIZE))
GROUPS = ("n_groups", "num_groups", "mamba_n_groups", "mamba_num_groups")
HEADS = ("mamba_num_heads", "mamba_n_heads")
HEAD_DIM = ("mamba_head_dim", "mamba_d_head")

MAMBA_LAYER = {
    **needs("attn_norm ssm_in ssm_conv1d ssm_norm ssm_out", optional_bias="ssm_conv1d"),
    "ssm_dt.bias": True,
    "ssm_a": True,
    "ssm_d": True,
}
MAMBA_RENAMES = ((r"(.*)\.dt_bias", r"\1.dt_proj.bias"),)
MAMBA_MAPPINGS = (
    TensorMapping(r"(.*\.A_log)", {r"\1": (negative_exp, as_column)}),
    TensorMapping(r"(.*\.(?:mixer|mamba)\.D)", {r"\1": (as_column,)}),
    TensorMapping(r"(.*\.conv1d\.weight)", {r"\1": (without_middle,)}),
    TensorMapping(r"(.*\.(?:mixer|mamba)\.norm\.weight)", {r"\1": (in_state_groups,)}),
)


def inner_size(model: SourceModel) -> int:
    """Elements of a state-space layer's own width: heads × head size (not expand × hidden)."""
    return model.config.whole(*HEADS) * model.config.whole(*HEAD_DIM)


def mamba_sizes(model: SourceModel) -> dict[str, int]:
    """The sizes of a state-space layer; in_proj makes gate, input, B, C and a step per head."""
    config, inner = model.config, inner_size(model)
    heads, groups = config.whole(*HEADS), config.whole(*GROUPS)
    channels = inner + 2 * groups * config.whole(*STATE_SIZE)
    return {
        "ssm_inner": inner,
        "ssm_heads": heads,
        "ssm_groups": groups,
        "ssm_group_size": inner // groups,
        "ssm_channels": channels,
        "ssm_projections": inner + channels + heads,
        "ssm_kernel": config.whole(*CONV_KERNEL),
    }


MAMBA_KEYS: tuple[Key, ...] = (
    ("ssm.conv_kernel", first(*CONV_KERNEL)),
    ("ssm.state_size", first(*STATE_SIZE)),
    ("ssm.group_count", first(*GROUPS)),
    ("ssm.inner_size", inner_size),
    ("ssm.time_step_rank", first(*HEADS)),
)
