"""Nemotron: LayerNorm1p with biases, squared ReLU without a gate, rotary positions in part."""

from __future__ import annotations

import numpy as np

from minitron_convert.architectures.base import (
    SCALED,
    Family,
    ModelTensor,
    Slot,
    file_type_key,
    unchanged,
)
from minitron_convert.checkpoint.config import Config, Defaults
from minitron_convert.checkpoint.tensor_ref import Array, TensorRef
from minitron_convert.encode import to_float
from minitron_core.errors import Damaged
from minitron_core.gguf import KeyValue


class Nemotron(Family):
    """NemotronForCausalLM."""

    name = "nemotron"
    defaults = Defaults(context=4096, norm_epsilon=1e-5)

    def slots(self) -> dict[str, Slot]:
        """The common slots; norm weights get their 1, which llama.cpp's LayerNorm lacks."""
        slots = self.common_slots(norm_bias=True)
        return {
            name: Slot(slot.gguf_name, slot.shape, slot.required, add_one)
            if name.endswith("norm.weight")
            else slot
            for name, slot in slots.items()
        }

    def extra_tensors(self) -> list[ModelTensor]:
        """The output's weights, which llama.cpp wants even where they are the embedding's."""
        tensors = self.checkpoint.tensors
        if "lm_head.weight" in tensors or not self.tied:
            return []
        return [unchanged(tensors["model.embed_tokens.weight"], "output.weight")]

    def hyperparameters(self, file_type: int) -> list[KeyValue]:
        """Every nemotron.* key."""
        return [
            *self.common_keys(),
            self.real("attention.layer_norm_rms_epsilon", self.epsilon),
            *self.head_keys(),
            file_type_key(file_type),
            self.whole("vocab_size", self.size.vocab),
            self.real("attention.layer_norm_epsilon", self.epsilon),
            self.whole("rope.dimension_count", self.rotary_dimensions),
            *([] if self.rope.kind in SCALED else [self.text("rope.scaling.type", "none")]),
        ]

    @property
    def epsilon(self) -> float:
        """What the norms add to the variance."""
        return self.config.number(
            "norm_eps", "layer_norm_eps", "norm_epsilon", default=self.defaults.norm_epsilon
        )

    @property
    def rotary_dimensions(self) -> int:
        """How many of a head's dimensions are turned."""
        names = ("partial_rotary_factor", "rope_percent", "rope_pct", "rope_percentage")
        settings = Config({**self.config.values, **self.rope.values.values}, self.config.where)
        share = settings.number(*names, default=0.5)
        count = int(share * self.size.head_dim)
        if not 0 < count <= self.size.head_dim or count % 2:
            raise Damaged(
                f"{self.config.where} turns {share} of {self.size.head_dim} dimensions, "
                "which is no even number of them."
            )
        return count


def add_one(tensor: TensorRef, name: str) -> ModelTensor:
    """LayerNorm1p stores weights around 0; LayerNorm wants them around 1.

    float16 is added to in float16, as llama.cpp's converter does; all else in float32.
    """

    def read(start: int, stop: int) -> Array:
        values = to_float(tensor.read(start, stop), tensor.dtype)
        return np.add(values, 1, dtype=values.dtype)

    return ModelTensor(name, tensor.shape, "F16" if tensor.dtype == "F16" else "F32", read)
