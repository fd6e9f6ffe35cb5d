"""Nemotrons whose heads together are wider than the model (Minitron-8B: 48 × 128 on 4096).

llama.cpp's nemotron takes the two for equal and refuses such a model. Its jais2 computes the same
network (LayerNorm with bias, squared ReLU, queries of any width) but turns all dimensions of a
head, so the share that Nemotron leaves still must be turned by nothing. YaRN scaling does that: it
keeps the fast frequencies and divides the slow ones by its factor, here until they stand still.

A head of h dimensions, of which t are turned, becomes one of 2n. Frequency i of n is base^(-i/n);
with base = theta^(2n/t) the first t/2 are Nemotron's own. YaRN blends between two frequencies
`low` and `high` that depend on the original context, which is chosen so that `low` is the last of
these; the pairs that stand still are put behind `high`, and zeros into the blend between. The
weights are moved, not changed; what YaRN and the wider head do to the size of the scores is undone
by its attention factor. The keys suffice: no setting of the context is needed.
(ggml_rope_yarn_corr_dims, rope_yarn and llama_context in llama.cpp 0c1e57098.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minitron_convert.architectures.base import Family, ModelTensor, Slot, file_type_key, from_array
from minitron_convert.architectures.nemotron import Nemotron
from minitron_convert.checkpoint.folder import Checkpoint
from minitron_convert.checkpoint.tensor_ref import DTYPES, Array, TensorRef
from minitron_core.errors import Unsupported
from minitron_core.gguf import KeyValue, ValueType

BETA_FAST, BETA_SLOW = 32.0, 1.0  # llama.cpp's defaults, which jais2 does not read from the file
FACTOR = 1e8
HEAD_STEP = 32


@dataclass(frozen=True)
class WideHead:
    """A head of `size` dimensions in which `turned` pairs turn and `still` pairs do not."""

    size: int
    turned: int
    still: int
    base: float
    original_context: int
    attention_factor: float

    @property
    def places(self) -> Array:
        """Where each dimension of Nemotron's head stands: pair i is (i, i + size / 2)."""
        half = self.size // 2
        fast, slow = np.arange(self.turned), half - self.still + np.arange(self.still)
        return np.concatenate([fast, half + fast, slow, half + slow])


def widen(head_dim: int, rotary: int, theta: float) -> WideHead:
    """The head that turns `rotary` of `head_dim` dimensions by frequencies of base `theta`."""
    turned, still = rotary // 2, (head_dim - rotary) // 2
    steepness = rotary / (2 * math.log(theta))
    # A quarter above the whole number that llama.cpp rounds down to, out of reach of rounding.
    low = turned - 1 + 0.25
    original = round(BETA_FAST * 2 * math.pi * math.exp(low / steepness))
    high = math.ceil(low + steepness * math.log(BETA_FAST / BETA_SLOW))
    size = -(-2 * (high + still) // HEAD_STEP) * HEAD_STEP
    scores = math.sqrt(math.sqrt(size / head_dim))  # once for queries, once for keys
    return WideHead(
        size=size,
        turned=turned,
        still=still,
        base=theta ** (size / rotary),
        original_context=original,
        attention_factor=scores / (1 + 0.1 * math.log(FACTOR)),
    )


class WideNemotron(Nemotron):
    """NemotronForCausalLM with heads × head_dim ≠ hidden_size, as llama.cpp's jais2."""

    name = "jais2"

    @cached_property
    def head(self) -> WideHead:
        """The widened head. Unsupported if its numbers do not fit into a file."""
        head = widen(self.size.head_dim, self.rotary_dimensions, max(self.rope.theta, 2.0))
        fits = self.rope.theta >= 2 and head.original_context < 2**31 and head.base < 1e38
        if self.rope.kind != "default" or not fits:
            raise Unsupported(
                f"{self.checkpoint.folder}: {self.size.heads} heads of {self.size.head_dim} on "
                f"hidden_size {self.size.hidden} with {self.rope.kind} rotary scaling cannot be "
                "expressed in llama.cpp."
            )
        return head

    def slots(self) -> dict[str, Slot]:
        """Nemotron's slots with the heads widened: rows of q, k, v and columns of o."""
        changes = {
            "q_proj": self._turned_rows,
            "k_proj": self._turned_rows,
            "v_proj": self._plain_rows,
            "o_proj.weight": self._columns,
        }
        slots = super().slots()
        for name, slot in slots.items():
            for part, change in changes.items():
                if part in name:
                    slots[name] = Slot(slot.gguf_name, slot.shape, slot.required, change)
        return slots

    def extra_tensors(self) -> list[ModelTensor]:
        """The biases that jais2 insists on, zero where the checkpoint has none."""
        self.notes.append(self.explanation)
        extra = super().extra_tensors()
        given = self.checkpoint.tensors
        for name, slot in self.slots().items():
            wanted = name.endswith((".o_proj.bias", ".up_proj.bias", ".down_proj.bias"))
            if wanted and name not in given:
                zeros = np.zeros(slot.shape, np.float32)
                extra.append(from_array(slot.gguf_name, zeros))
        return extra

    @property
    def explanation(self) -> str:
        """What was done, in one sentence."""
        size = self.size
        return (
            f"{size.heads} heads of {size.head_dim} on hidden_size {size.hidden} do not load as "
            f"nemotron in llama.cpp: written as the equivalent jais2 model with heads of "
            f"{self.head.size}, the added dimensions zero"
        )

    def hyperparameters(self, file_type: int) -> list[KeyValue]:
        """Every jais2.* key."""
        head = self.head
        return [
            *self.common_keys(),
            self.text("rope.scaling.type", "yarn"),
            self.real("rope.scaling.factor", FACTOR),
            self.whole("rope.scaling.original_context_length", head.original_context),
            self.real("rope.scaling.attn_factor", head.attention_factor),
            self.real("attention.layer_norm_epsilon", self.epsilon),
            self.whole("attention.key_length", head.size),
            self.whole("attention.value_length", head.size),
            file_type_key(file_type),
            self.whole("vocab_size", self.size.vocab),
            self.whole("rope.dimension_count", head.size),
            KeyValue.of("minitron.conversion", ValueType.STRING, self.explanation),
        ]

    @property
    def frequency_base(self) -> float:
        """The base whose first frequencies are Nemotron's."""
        return self.head.base

    def _turned_rows(self, tensor: TensorRef, name: str) -> ModelTensor:
        return self._widened_rows(tensor, name, self.head.places)

    def _plain_rows(self, tensor: TensorRef, name: str) -> ModelTensor:
        return self._widened_rows(tensor, name, np.arange(self.size.head_dim))

    def _widened_rows(self, tensor: TensorRef, name: str, places: Array) -> ModelTensor:
        old, new = self.size.head_dim, self.head.size
        rest = tensor.shape[1:]

        def read(start: int, stop: int) -> Array:
            heads = (stop - start) // new
            rows = tensor.read(start // new * old, stop // new * old)
            wide = np.zeros((heads, new, *rest), DTYPES[tensor.dtype])
            wide[:, places] = rows.reshape(heads, old, *rest)
            return wide.reshape(heads * new, *rest)

        shape = (tensor.shape[0] // old * new, *rest)
        return ModelTensor(name, shape, tensor.dtype, read, step=new)

    def _columns(self, tensor: TensorRef, name: str) -> ModelTensor:
        old, new, heads = self.size.head_dim, self.head.size, self.size.heads

        def read(start: int, stop: int) -> Array:
            wide = np.zeros((stop - start, heads, new), DTYPES[tensor.dtype])
            wide[:, :, :old] = tensor.read(start, stop).reshape(stop - start, heads, old)
            return wide.reshape(stop - start, heads * new)

        return ModelTensor(name, (tensor.shape[0], heads * new), tensor.dtype, read)


def by_shape(checkpoint: Checkpoint) -> Family:
    """Nemotron, by the shape of its heads: llama.cpp's own loader takes only square ones."""
    family = Nemotron(checkpoint)
    square = family.size.attention == family.size.hidden
    return family if square else WideNemotron(checkpoint)


ARCHITECTURES = {"NemotronForCausalLM": by_shape}
