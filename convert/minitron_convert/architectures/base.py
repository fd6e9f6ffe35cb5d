"""What the families share: the tensors' names, their checks, and the keys of every model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from minitron_convert.checkpoint.config import (
    Config,
    Defaults,
    Dimensions,
    Rope,
    read_dimensions,
    read_rope,
)
from minitron_convert.checkpoint.folder import Checkpoint
from minitron_convert.checkpoint.tensor_ref import Array, TensorRef
from minitron_core.errors import Damaged
from minitron_core.gguf import KeyValue, ValueType

# Buffers that old versions of transformers saved with the weights.
IGNORED_SUFFIXES = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")

# Kinds of rotary scaling that llama.cpp reads from keys; llama3's comes as a tensor.
SCALED = ("linear", "yarn")


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of the output: `read(start, stop)` gives rows, in the data type `dtype`.

    `shape` is in numpy's order; rows are read in multiples of `step`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], Array]
    step: int = 1


@dataclass(frozen=True)
class Slot:
    """A place for a checkpoint's tensor: its GGUF name, its shape, and how it is changed."""

    gguf_name: str
    shape: tuple[int, ...]
    required: bool = True
    change: Callable[[TensorRef, str], ModelTensor] | None = None


def unchanged(tensor: TensorRef, name: str) -> ModelTensor:
    """The tensor as it is."""
    return ModelTensor(name, tensor.shape, tensor.dtype, tensor.read)


def from_array(name: str, values: Array) -> ModelTensor:
    """A tensor that the checkpoint lacks, from float32 values."""
    return ModelTensor(name, values.shape, "F32", lambda start, stop: values[start:stop])


class Family:
    """One architecture; subclasses give the slots of a block, the keys and the vocabulary."""

    name: ClassVar[str]
    defaults: ClassVar[Defaults]

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.config = Config(checkpoint.config, str(checkpoint.folder / "config.json"))
        self.size: Dimensions = read_dimensions(self.config, checkpoint.tensors, self.defaults)
        self.rope: Rope = read_rope(self.config)
        self.notes: list[str] = []

    def slots(self) -> dict[str, Slot]:
        """Every tensor that the family knows, by its name in the checkpoint."""
        raise NotImplementedError

    def extra_tensors(self) -> list[ModelTensor]:
        """Tensors that the checkpoint lacks and llama.cpp wants; they come first in the file."""
        return []

    def hyperparameters(self, file_type: int) -> list[KeyValue]:
        """The keys of the model in the order of llama.cpp's converter."""
        raise NotImplementedError

    @cached_property
    def tied(self) -> bool:
        """Whether the config says that the output shares the token embedding's weights."""
        return self.config.find("tie_word_embeddings") is True

    def tensors(self) -> Iterator[ModelTensor]:
        """All tensors of the output in file order. Damaged: missing, unknown or of other shape."""
        slots = self.slots()
        given = {
            name: tensor
            for name, tensor in self.checkpoint.tensors.items()
            if not name.endswith(IGNORED_SUFFIXES)
        }
        self._check(slots, given)
        yield from self.extra_tensors()
        for name, tensor in given.items():
            slot = slots[name]
            yield (slot.change or unchanged)(tensor, slot.gguf_name)

    def _check(self, slots: dict[str, Slot], given: dict[str, TensorRef]) -> None:
        folder = self.checkpoint.folder
        missing = [name for name, slot in slots.items() if slot.required and name not in given]
        if missing:
            raise Damaged(
                f"{folder} lacks {len(missing)} tensors: {', '.join(missing)}.",
                "Download the missing files, or check num_hidden_layers in config.json.",
            )
        unknown = [name for name in given if name not in slots]
        if unknown:
            raise Damaged(
                f"{folder} holds {len(unknown)} tensors that its config.json has no place for: "
                f"{', '.join(unknown)}.",
                "Check num_hidden_layers and architectures in config.json.",
            )
        for name, tensor in given.items():
            if tensor.shape != slots[name].shape:
                raise Damaged(
                    f"{tensor.path}: {name} has the shape {list(tensor.shape)}; "
                    f"config.json wants {list(slots[name].shape)}.",
                    "The config belongs to another model, or the file is damaged.",
                )

    def common_slots(self, norm_bias: bool) -> dict[str, Slot]:
        """Embedding, output, norms and attention: what all families have."""
        size = self.size
        slots = {
            "model.embed_tokens.weight": Slot("token_embd.weight", (size.vocab, size.hidden)),
            "lm_head.weight": Slot("output.weight", (size.vocab, size.hidden), not self.tied),
        }
        norms = {"model.norm": "output_norm"}
        for i in range(size.layers):
            norms[f"model.layers.{i}.input_layernorm"] = f"blk.{i}.attn_norm"
            norms[f"model.layers.{i}.post_attention_layernorm"] = f"blk.{i}.ffn_norm"
        for name, gguf_name in norms.items():
            slots[f"{name}.weight"] = Slot(f"{gguf_name}.weight", (size.hidden,))
            if norm_bias:
                slots[f"{name}.bias"] = Slot(f"{gguf_name}.bias", (size.hidden,))
        return slots | self._linear_slots()

    def _linear_slots(self) -> dict[str, Slot]:
        size = self.size
        kv_rows = size.kv_heads * size.head_dim
        shapes = {
            "self_attn.q_proj": ("attn_q", (size.attention, size.hidden)),
            "self_attn.k_proj": ("attn_k", (kv_rows, size.hidden)),
            "self_attn.v_proj": ("attn_v", (kv_rows, size.hidden)),
            "self_attn.o_proj": ("attn_output", (size.hidden, size.attention)),
            "mlp.up_proj": ("ffn_up", (size.ffn, size.hidden)),
            "mlp.down_proj": ("ffn_down", (size.hidden, size.ffn)),
        }
        slots = {}
        for i in range(size.layers):
            for name, (gguf_name, shape) in shapes.items():
                prefix, gguf_prefix = f"model.layers.{i}.{name}", f"blk.{i}.{gguf_name}"
                slots[f"{prefix}.weight"] = Slot(f"{gguf_prefix}.weight", shape)
                slots[f"{prefix}.bias"] = Slot(f"{gguf_prefix}.bias", shape[:1], False)
        return slots

    def common_keys(self) -> list[KeyValue]:
        """The keys of sizes and rotary positions, which all families have."""
        size = self.size
        return [
            self.whole("block_count", size.layers),
            self.whole("context_length", size.context),
            self.whole("embedding_length", size.hidden),
            self.whole("feed_forward_length", size.ffn),
            self.whole("attention.head_count", size.heads),
            self.whole("attention.head_count_kv", size.kv_heads),
            *self._rope_scaling_keys(),
            self.real("rope.freq_base", self.frequency_base),
        ]

    @property
    def frequency_base(self) -> float:
        """The base of the rotary frequencies."""
        return self.rope.theta

    def head_keys(self) -> list[KeyValue]:
        """The keys of a head's size, which say it where it is not hidden / heads."""
        return [
            self.whole("attention.key_length", self.size.head_dim),
            self.whole("attention.value_length", self.size.head_dim),
        ]

    def _rope_scaling_keys(self) -> list[KeyValue]:
        kind, values = self.rope.kind, self.rope.values
        if kind not in SCALED:
            return []
        keys = [
            self.text("rope.scaling.type", kind),
            self.real("rope.scaling.factor", values.number("factor")),
        ]
        if kind == "yarn":
            original = values.whole(
                "original_max_position_embeddings",
                default=self.config.find("original_max_position_embeddings") or self.size.context,
            )
            keys.append(self.whole("rope.scaling.original_context_length", original))
            for key, names in _YARN_KEYS.items():
                if values.find(*names) is not None:
                    keys.append(self.real(f"rope.scaling.{key}", values.number(*names)))
        return keys

    def whole(self, key: str, value: int) -> KeyValue:
        """A key of this architecture with a u32."""
        return KeyValue.of(f"{self.name}.{key}", ValueType.UINT32, value)

    def real(self, key: str, value: float) -> KeyValue:
        """A key of this architecture with an f32."""
        return KeyValue.of(f"{self.name}.{key}", ValueType.FLOAT32, value)

    def text(self, key: str, value: str) -> KeyValue:
        """A key of this architecture with a string."""
        return KeyValue.of(f"{self.name}.{key}", ValueType.STRING, value)


_YARN_KEYS = {
    "yarn_ext_factor": ("extrapolation_factor",),
    "yarn_attn_factor": ("attention_factor", "attn_factor"),
    "yarn_beta_fast": ("beta_fast",),
    "yarn_beta_slow": ("beta_slow",),
}


def file_type_key(file_type: int) -> KeyValue:
    """The key that names the type of most tensors."""
    return KeyValue.of("general.file_type", ValueType.UINT32, file_type)
