"""What a model family is: one record that says how its checkpoints differ from the common case."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from minitron_convert.architectures.model_tensor import ModelTensor, Step
from minitron_convert.vocab.rules import PLAIN_RULES, VocabularyRules

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel

Value = Any  # of a key: int, float, bool, str or a list of them; None leaves the key out
Getter = Callable[["SourceModel"], Value]
Key = tuple[str, str | Getter]  # a key of GGUF and the key of config.json, or what computes it
Tensors = Mapping[str, bool]  # tensors of a layer, as `attn_q.weight`: whether they must be there


def needs(names: str, *, bias: str = "", optional_bias: str = "") -> dict[str, bool]:
    """The weights of a layer, the biases it must have, and those it may have."""
    tensors = {f"{name}.weight": True for name in names.split()}
    tensors |= {f"{name}.bias": True for name in bias.split()}
    return tensors | {f"{name}.bias": False for name in optional_bias.split()}


ATTENTION = "attn_norm attn_q attn_k attn_v attn_output"
GATED_FFN = "ffn_norm ffn_gate ffn_up ffn_down"
PLAIN_FFN = "ffn_norm ffn_up ffn_down"
EXPERTS = "ffn_norm ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps"
SHARED_EXPERT = "ffn_gate_shexp ffn_up_shexp ffn_down_shexp"
QKV = "attn_q attn_k attn_v"


class WrongConfig(ValueError):
    """A config that a record's function cannot read, and why."""


@dataclass(frozen=True)
class TensorMapping:
    """What becomes of the tensors whose name matches `pattern`, where it is more than a new name.

    `into` gives the tensors made of one, each by its name and the steps that change it. A name
    may refer to groups of the pattern; one that begins with `blk.` is GGUF's own, others go
    through gguf-py's map. An empty `into` drops the tensor; with `only_zeros` that is an error
    where the tensor holds anything else.
    """

    pattern: str
    into: Mapping[str, Sequence[Step]] = field(default_factory=dict)
    only_zeros: bool = False

    @cached_property
    def expression(self) -> re.Pattern[str]:
        """The compiled pattern."""
        return re.compile(self.pattern)


@dataclass(frozen=True)
class Experts:
    """How experts that are stored one by one are stacked into tensors of three dimensions.

    `pattern` matches an expert's tensor and gives the groups `prefix`, `expert` and `part`; the
    stacks of a layer are written in the order of `parts`, which maps a part to its name in GGUF.
    """

    parts: Mapping[str, str]
    pattern: str = (
        r"(?P<prefix>.*\.layers\.\d+)\.mlp\.experts\.(?P<expert>\d+)\.(?P<part>\w+)\.weight"
    )


GATED_EXPERTS = Experts(
    {"down_proj": "ffn_down_exps", "gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps"}
)


@dataclass(frozen=True)
class Layer:
    """A layer: its kind, one of those in Architecture.layer_kinds, and sizes that are its own."""

    kind: str = "layer"
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """A model family.

    `arch` is llama.cpp's name, which decides what a tensor's name means. `models` names
    published models for the documentation, `hub` one or two of them as the Hub does. `defaults`
    are the values of transformers' config class that reach a key (transformers 4.57.6);
    `fills_head_dim` says that this class sets head_dim, so that the keys of a head's size are
    always written. `keys` replaces the common list of keys, `after` adds to it and `before`
    comes ahead of the general.* keys. `shapes` replaces entries of the common table. `renames`
    are applied to every tensor's name in turn, before the mappings; they may refer to the
    number of layers as {layers}. `drops_tied_output` leaves out the output's weights where they
    are the embedding's, `drops_further_layers` those behind the last, which predict further
    tokens. `quantizations` are ways in which checkpoints of the family are quantized and still
    read. `refuse` gives a reason why a checkpoint cannot be converted, `note` what to say of
    one that can, and `variant` chooses another record by what the checkpoint holds.
    """

    arch: str
    models: str = ""
    hub: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fills_head_dim: bool = False
    normalize: Callable[[dict[str, Any]], dict[str, Any]] = dict
    layer_kinds: Mapping[str, Tensors] = field(default_factory=dict)
    layers: Callable[[SourceModel], Sequence[Layer]] | None = None
    sizes: Callable[[SourceModel], Mapping[str, int]] | None = None
    shapes: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    ends: Tensors = field(default_factory=lambda: needs("token_embd output_norm output"))
    renames: Sequence[tuple[str, str]] = ()
    mappings: Sequence[TensorMapping] = ()
    experts: Experts | None = None
    synthesized_tensors: Callable[[SourceModel], Sequence[ModelTensor]] | None = None
    keys: Sequence[Key] | None = None
    after: Sequence[Key] = ()
    before: Sequence[Key] = ()
    rope_kinds: Sequence[str] = ("default", "linear", "yarn", "llama3", "dynamic")
    vocabulary: VocabularyRules = PLAIN_RULES
    quantizations: tuple[str, ...] = ()
    drops_tied_output: bool = False
    drops_further_layers: bool = False
    refuse: Callable[[SourceModel], str | None] | None = None
    note: Callable[[SourceModel], str | None] | None = None
    variant: Callable[[SourceModel], Architecture] | None = None
