"""A checkpoint read as its architecture: sizes, tensors in file order, and keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import gguf

from minitron_convert.architectures.check_tensors import NUMBER, Placed, check_tensors, listed
from minitron_convert.architectures.experts import ExpertStacks
from minitron_convert.architectures.keys import COMMON, key_values
from minitron_convert.architectures.model_tensor import (
    ModelTensor,
    Sizes,
    WrongShape,
    unchanged,
)
from minitron_convert.architectures.record import Architecture, Layer, TensorMapping, WrongConfig
from minitron_convert.architectures.shapes import (
    FULL_PRECISION,
    block_of,
    expected_shape,
    kind_of,
)
from minitron_convert.checkpoint.config import Config, Dimensions, Rope, read_dimensions, read_rope
from minitron_convert.checkpoint.folder import Checkpoint
from minitron_convert.checkpoint.tensor_ref import ForeignTensorRef, TensorRef
from minitron_core.errors import Damaged, Unsupported
from minitron_core.gguf import KeyValue

# Buffers that old versions of transformers saved with the weights.
IGNORED_SUFFIXES = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp
_INTEGERS = frozenset(("I64", "I32", "I16", "I8", "U8"))  # those of DTYPES

_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
_COMMON_RENAMES = ((r"(.*)\.e_score_correction_bias", r"\1.e_score_correction.bias"),)


class SourceModel:
    """An opened checkpoint of a known architecture. Errors of its methods: Damaged, Unsupported."""

    def __init__(self, architecture: Architecture, checkpoint: Checkpoint) -> None:
        self.architecture = architecture
        self.checkpoint = checkpoint
        self.notes: list[str] = []
        where = str(checkpoint.folder / "config.json")
        self.config = Config(_filled(architecture, checkpoint.config, where), where)
        self.size: Dimensions = read_dimensions(self.config, checkpoint.tensors)
        self.rope: Rope = read_rope(self.config, architecture.rope_kinds)
        if self.size.layers > MAX_LAYERS:
            raise Unsupported(
                f"{where} gives {self.size.layers} layers; llama.cpp takes {MAX_LAYERS}"
            )
        with _malformed(where, architecture.arch):
            reason = architecture.refuse(self) if architecture.refuse else None
            note = architecture.note(self) if architecture.note else None
        if reason:
            raise Unsupported(f"{checkpoint.folder}: {reason}")
        if note:
            self.notes.append(note)

    def variant(self) -> SourceModel:
        """The same checkpoint as the record that fits what it holds."""
        choose = self.architecture.variant
        if choose is None:
            return self
        with _malformed(self.config.where, self.arch):
            chosen = choose(self)
        return SourceModel(chosen, self.checkpoint)

    @property
    def arch(self) -> str:
        """The architecture's name in GGUF."""
        return self.architecture.arch

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers in order."""
        if self.architecture.layers is not None:
            with _malformed(self.config.where, self.arch):
                return list(self.architecture.layers(self))
        return [Layer()] * self.size.layers

    @cached_property
    def tied(self) -> bool:
        """Whether the config says that the output shares the token embedding's weights."""
        return self.config.find("tie_word_embeddings") is True

    def hyperparameters(self, file_type: int) -> list[KeyValue]:
        """The keys of the model in the order of llama.cpp's converter."""
        keys = COMMON if self.architecture.keys is None else self.architecture.keys
        with _malformed(self.config.where, self.arch):
            return key_values(self, (*keys, *self.architecture.after), file_type)

    def leading_keys(self) -> list[KeyValue]:
        """The keys that stand before the general ones."""
        with _malformed(self.config.where, self.arch):
            return key_values(self, self.architecture.before)

    def tensors(self) -> list[ModelTensor]:
        """All tensors of the output in file order. Damaged: missing, unknown or of other shape."""
        placed = list(self._place())
        check_tensors(self.checkpoint.folder, placed, self._expected)
        synthesized = self.architecture.synthesized_tensors
        with _malformed(self.config.where, self.arch):
            extra = list(synthesized(self)) if synthesized else []
        return [*extra, *(entry.tensor for entry in placed)]

    def sizes(self, layer: Layer | None = None) -> dict[str, int]:
        """The sizes of a layer by the names that shapes.py uses."""
        sizes = {**self._base_sizes, **(layer.sizes if layer else {})}
        head = sizes["head"]
        sizes.setdefault("queries", sizes["heads"] * head)
        sizes.setdefault("keys", sizes["kv_heads"] * head)
        sizes.setdefault("qkv", sizes["queries"] + 2 * sizes["keys"])
        return sizes

    @cached_property
    def _base_sizes(self) -> dict[str, int]:
        size = self.size
        sizes = {
            "hidden": size.hidden,
            "two_hidden": 2 * size.hidden,
            "expert_hidden": size.hidden,
            "ffn": size.ffn,
            "heads": size.heads,
            "kv_heads": size.kv_heads,
            "head": size.head_dim,
            "vocab": size.vocab,
        }
        if self.config.find(*_EXPERT_COUNTS) is not None:
            sizes["experts"] = self.config.whole(*_EXPERT_COUNTS, least=0)
            sizes["expert_ffn"] = self.config.whole("moe_intermediate_size", "intermediate_size")
        more = self.architecture.sizes
        with _malformed(self.config.where, self.arch):
            return {**sizes, **(more(self) if more else {})}

    @cached_property
    def _layer_sizes(self) -> list[dict[str, int]]:
        return [self.sizes(layer) for layer in self.layers]

    def sizes_of(self, name: str) -> Sizes:
        """The sizes of the layer that a tensor's name gives, or of the model outside of layers."""
        number = NUMBER.search(name)
        if number and int(number[0]) < len(self.layers):
            return self._layer_sizes[int(number[0])]
        return self.sizes()

    def _place(self) -> Iterator[Placed]:
        """The tensors in file order: changed, named, and experts stacked where the last one was."""
        stacks = ExpertStacks(
            self.architecture.experts, self.sizes().get("experts", 0), self.checkpoint.folder
        )
        left_out: list[str] = []
        for source in self.checkpoint.tensors.values():
            if self._is_dropped(source.name):
                continue
            if self._leave_out(source):
                left_out.append(f"{source.name} ({source.dtype})")
                continue
            for tensor in self._changed(source):
                for whole in stacks.add(tensor):
                    yield Placed(self._named(whole, source), source)
        stacks.check_empty()
        if left_out:
            self.notes.append(f"left out, as they are not weights: {listed(left_out)}")

    def _leave_out(self, source: TensorRef) -> bool:
        """Whether a tensor is not one of the model's weights; Unsupported where it should be.

        Masks and counters that were saved with the weights are not floating-point numbers.
        """
        if not isinstance(source, ForeignTensorRef) and source.dtype not in _INTEGERS:
            return False
        names = [self._named(tensor, source).name for tensor in self._changed(source)]
        needed = source.name.endswith(".weight") or any(name in self._expected for name in names)
        if isinstance(source, ForeignTensorRef) and names and needed:
            raise source.refusal()
        return bool(names) and not needed

    def _is_dropped(self, name: str) -> bool:
        if self.tied and self.architecture.drops_tied_output and name == "lm_head.weight":
            return True
        layer = NUMBER.search(name) if self.architecture.drops_further_layers else None
        further = layer is not None and int(layer[0]) >= self.size.layers
        return further or name.endswith(IGNORED_SUFFIXES)

    def _changed(self, source: TensorRef) -> Iterator[ModelTensor]:
        name = source.name
        for expression, template in self._renames:
            found = expression.fullmatch(name)
            name = found.expand(template) if found else name
        for mapping in self.architecture.mappings:
            found = mapping.expression.fullmatch(name)
            if found:
                yield from self._mapped(source, mapping, found)
                return
        yield replace(unchanged(source), name=name)

    @cached_property
    def _renames(self) -> list[tuple[re.Pattern[str], str]]:
        renames = (*self.architecture.renames, *_COMMON_RENAMES)
        layers = str(self.size.layers)
        return [(re.compile(old), new.replace("{layers}", layers)) for old, new in renames]

    def _mapped(
        self, source: TensorRef, mapping: TensorMapping, found: re.Match[str]
    ) -> Iterator[ModelTensor]:
        if mapping.only_zeros and source.read().any():
            raise Unsupported(
                f"{source.path}: {source.name} is not zero, and llama.cpp's {self.arch} "
                "has no place for it"
            )
        for template, steps in mapping.into.items():
            name = found.expand(template)
            tensor = replace(unchanged(source), name=name)
            try:
                for step in steps:
                    tensor = step(tensor, self.sizes_of(name))
            except (WrongShape, IndexError, ZeroDivisionError) as error:
                raise Damaged(
                    f"{source.path}: {source.name} has the shape {list(source.shape)}, which does "
                    "not fit config.json",
                    "the config belongs to another model, or the file is damaged",
                ) from error
            yield tensor

    def _named(self, tensor: ModelTensor, source: TensorRef) -> ModelTensor:
        """The tensor under its GGUF name."""
        name = tensor.name
        if not name.startswith("blk."):
            found = self._names.get_name(name, (".weight", ".bias"))
            if found is None:
                return replace(tensor, name=source.name)  # check_tensors names it with the others
            name = found
        # llama.cpp's converter goes by the number in the source's name, which is not the layer's
        # for the layers of Nemotron 3 that predict a further token
        number = NUMBER.search(source.name)
        same = block_of(name) == (int(number[0]) if number else None)
        return replace(tensor, name=name, full_precision=same and kind_of(name) in FULL_PRECISION)

    @cached_property
    def _names(self) -> gguf.TensorNameMap:
        kinds = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
        return gguf.get_tensor_name_map(kinds[self.arch], len(self.layers))

    def expected_tensors(self) -> dict[str, tuple[tuple[int, ...], bool]]:
        """Every tensor that the model may have: its shape and whether it must be there."""
        architecture = self.architecture
        expected = {}
        for name, required in architecture.ends.items():
            shape = expected_shape(kind_of(name), self.sizes(), architecture.shapes)
            expected[name] = (shape, required and not (self.tied and name == "output.weight"))
        for i, layer in enumerate(self.layers):
            for kind, required in architecture.layer_kinds[layer.kind].items():
                name = f"blk.{i}.{kind}"
                shape = expected_shape(kind_of(name), self._layer_sizes[i], architecture.shapes)
                expected[name] = (shape, required)
        return expected

    @cached_property
    def _expected(self) -> dict[str, tuple[tuple[int, ...], bool]]:
        return self.expected_tensors()


@contextmanager
def _malformed(where: str, arch: str) -> Iterator[None]:
    """Damaged for what a record's functions raise where a config holds other than they read."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise Damaged(f"{where} is not a config of {arch}: {_told(error)}") from error


def _told(error: Exception) -> str:
    """What a record's function met, without Python's names of its types."""
    if isinstance(error, WrongConfig):
        return str(error)
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}"
    return "a value in it has the wrong type or size"


def _filled(architecture: Architecture, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config with the defaults of its class where it is silent."""
    stated = {key: value for key, value in config.items() if value is not None}
    with _malformed(where, architecture.arch):
        return architecture.normalize({**architecture.defaults, **stated})
