"""Factors of rotary frequencies that llama.cpp reads from a tensor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from minitron_convert.architectures.model_tensor import ModelTensor, from_array
from minitron_convert.checkpoint.config import Config
from minitron_convert.checkpoint.tensor_ref import Array
from minitron_core.errors import Damaged

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel


def llama3_frequencies(model: SourceModel, factor: float = 8.0) -> list[ModelTensor]:
    """The factors by which llama3 scaling divides the rotary frequencies, where the config has it.

    `factor` is what transformers assumes where the config gives none.
    """
    if model.rope.kind != "llama3":
        return []
    theta = 10000.0 if model.rope.theta is None else model.rope.theta
    factors = llama3_factors(theta, model.size.head_dim, model.rope.values, factor)
    return [from_array("rope_freqs.weight", factors)]


def llama3_factors(theta: float, head_dim: int, settings: Config, factor: float = 8.0) -> Array:
    """Divisors of the rotary frequencies, f32 [head_dim / 2] (transformers' llama3 scaling).

    Long waves are stretched by `factor`, short ones are kept, those between blended smoothly.
    """
    factor = settings.number("factor", default=factor)
    low = settings.number("low_freq_factor", default=1.0)
    high = settings.number("high_freq_factor", default=4.0)
    original = settings.number("original_max_position_embeddings", default=8192)
    if high <= low:
        raise Damaged(f"{settings.where} gives high_freq_factor {high}, low_freq_factor {low}")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # float32 steps in the order in which torch does them (it multiplies by reciprocals), with the
    # power rounded once: all of torch's values but a few in the last bit, on any machine.
    frequencies = np.float32(1) / np.power(np.float64(theta), exponents).astype(np.float32)
    wavelengths = (np.float32(1) / frequencies) * np.float32(2 * math.pi)
    waves = (np.float32(1) / wavelengths) * np.float32(original)
    smooth = (waves - np.float32(low)) / np.float32(high - low)
    with np.errstate(divide="ignore"):  # where the blend does not apply
        factors: Array = np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)
    factors[wavelengths > original / low] = factor
    factors[wavelengths < original / high] = 1
    return factors
