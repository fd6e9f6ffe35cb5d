"""Llama: RMS norms, gated SiLU, rotary positions over whole heads, grouped queries."""

from __future__ import annotations

import math

import numpy as np

from minitron_convert.architectures.base import Family, ModelTensor, Slot, file_type_key, from_array
from minitron_convert.checkpoint.config import Config, Defaults
from minitron_convert.checkpoint.tensor_ref import Array, TensorRef
from minitron_core.errors import Damaged
from minitron_core.gguf import KeyValue


class Llama(Family):
    """LlamaForCausalLM."""

    name = "llama"
    defaults = Defaults(context=2048, norm_epsilon=1e-6)

    def slots(self) -> dict[str, Slot]:
        """The common slots with the gate, queries and keys in llama.cpp's order of rotary pairs."""
        size = self.size
        slots = self.common_slots(norm_bias=False)
        for i in range(size.layers):
            prefix = f"model.layers.{i}"
            gate, attention = f"{prefix}.mlp.gate_proj", f"{prefix}.self_attn"
            slots[f"{gate}.weight"] = Slot(f"blk.{i}.ffn_gate.weight", (size.ffn, size.hidden))
            slots[f"{gate}.bias"] = Slot(f"blk.{i}.ffn_gate.bias", (size.ffn,), False)
            for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"):
                slot = slots[f"{attention}.{name}"]
                slots[f"{attention}.{name}"] = Slot(
                    slot.gguf_name, slot.shape, slot.required, self._pair_rows
                )
        return slots

    def _pair_rows(self, tensor: TensorRef, name: str) -> ModelTensor:
        rows = self.size.head_dim

        def read(start: int, stop: int) -> Array:
            return pair_rows(tensor.read(start, stop), rows)

        return ModelTensor(name, tensor.shape, tensor.dtype, read, step=rows)

    def extra_tensors(self) -> list[ModelTensor]:
        """The factors by which llama3 scaling divides the rotary frequencies."""
        if self.rope.kind != "llama3":
            return []
        factors = llama3_factors(self.rope.theta, self.size.head_dim, self.rope.values)
        return [from_array("rope_freqs.weight", factors)]

    def hyperparameters(self, file_type: int) -> list[KeyValue]:
        """Every llama.* key."""
        epsilon = self.config.number("rms_norm_eps", "norm_eps", default=self.defaults.norm_epsilon)
        return [
            *self.common_keys(),
            self.real("attention.layer_norm_rms_epsilon", epsilon),
            *self.head_keys(),
            file_type_key(file_type),
            self.whole("vocab_size", self.size.vocab),
            self.whole("rope.dimension_count", self.size.head_dim),
        ]


def pair_rows(rows: Array, head_dim: int) -> Array:
    """Rows of whole heads, reordered so that the two of each rotary pair stand together.

    transformers turns row i with row i + head_dim/2; llama.cpp turns row 2i with row 2i + 1.
    """
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def llama3_factors(theta: float, head_dim: int, settings: Config) -> Array:
    """Divisors of the rotary frequencies, f32 [head_dim / 2] (transformers' llama3 scaling).

    Long waves are stretched by `factor`, short ones are kept, those between blended smoothly.
    """
    factor = settings.number("factor", default=8.0)
    low = settings.number("low_freq_factor", default=1.0)
    high = settings.number("high_freq_factor", default=4.0)
    original = settings.number("original_max_position_embeddings", default=8192)
    if high <= low:
        raise Damaged(f"{settings.where} gives high_freq_factor {high}, low_freq_factor {low}.")
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


ARCHITECTURES = {"LlamaForCausalLM": Llama, "LLaMAForCausalLM": Llama}
