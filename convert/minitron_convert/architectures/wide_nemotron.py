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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from minitron_convert.architectures.keys import FILE_TYPE, SIZES, constant
from minitron_convert.architectures.model_tensor import (
    ModelTensor,
    Sizes,
    WrongShape,
    from_array,
)
from minitron_convert.architectures.nemotron import (
    NEMOTRON,
    NORMS_AROUND_ONE,
    rotary_dimensions,
    untied_output,
)
from minitron_convert.architectures.record import Architecture, TensorMapping
from minitron_convert.checkpoint.tensor_ref import DTYPES, Array
from minitron_core.errors import Unsupported

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel

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


def head_places(size: int, turned: int, still: int) -> Array:
    """Where a head's dimensions stand in one of `size`, whose pair i is (i, i + size / 2)."""
    half = size // 2
    fast, slow = np.arange(turned), half - still + np.arange(still)
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


def wide_head(model: SourceModel) -> WideHead:
    """The widened head. Unsupported if its numbers do not fit into a file."""
    theta = 10000.0 if model.rope.theta is None else model.rope.theta
    head = widen(model.size.head_dim, rotary_dimensions(model), max(theta, 2.0))
    fits = theta >= 2 and head.original_context < 2**31 and head.base < 1e38
    if model.rope.kind != "default" or not fits:
        raise Unsupported(
            f"{model.checkpoint.folder}: {model.size.heads} heads of {model.size.head_dim} on "
            f"hidden_size {model.size.hidden} with {model.rope.kind} rotary scaling cannot be "
            "expressed in llama.cpp"
        )
    return head


def _sizes(model: SourceModel) -> dict[str, int]:
    head, size = wide_head(model), model.size
    return {
        "queries": size.heads * head.size,
        "keys": size.kv_heads * head.size,
        "wide_head": head.size,
        "turned_pairs": head.turned,
        "still_pairs": head.still,
    }


def _widened_rows(tensor: ModelTensor, sizes: Sizes, places: Array) -> ModelTensor:
    old, new = sizes["head"], sizes["wide_head"]
    if tensor.rows % old:
        raise WrongShape(f"{tensor.rows} rows are not whole heads of {old}")
    rest = tensor.shape[1:]

    def read(start: int, stop: int) -> Array:
        heads = (stop - start) // new
        rows = tensor.read(start // new * old, stop // new * old)
        wide = np.zeros((heads, new, *rest), DTYPES[tensor.dtype])
        wide[:, places] = rows.reshape(heads, old, *rest)
        return wide.reshape(heads * new, *rest)

    shape = (tensor.shape[0] // old * new, *rest)
    return replace(tensor, shape=shape, read=read, step=new)


def turned_rows(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """Queries and keys in wider heads: turned pairs in front, still ones behind."""
    places = head_places(sizes["wide_head"], sizes["turned_pairs"], sizes["still_pairs"])
    return _widened_rows(tensor, sizes, places)


def plain_rows(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """Values in wider heads: zeros behind each."""
    return _widened_rows(tensor, sizes, np.arange(sizes["head"]))


def wider_columns(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """The output projection for wider heads: zeros behind each."""
    old, new, heads = sizes["head"], sizes["wide_head"], sizes["heads"]
    if tensor.shape[-1] != heads * old:
        raise WrongShape(f"{tensor.shape[-1]} columns are not {heads} heads of {old}")

    def read(start: int, stop: int) -> Array:
        wide = np.zeros((stop - start, heads, new), DTYPES[tensor.dtype])
        wide[:, :, :old] = tensor.read(start, stop).reshape(stop - start, heads, old)
        return wide.reshape(stop - start, heads * new)

    return replace(tensor, shape=(tensor.shape[0], heads * new), read=read)


def _missing_biases(model: SourceModel) -> list[ModelTensor]:
    """The biases that jais2 insists on, zero where the checkpoint has none."""
    model.notes.append(explanation(model))
    extra = list(untied_output(model))
    widths = {
        "self_attn.o_proj": ("attn_output", model.size.hidden),
        "mlp.up_proj": ("ffn_up", model.size.ffn),
        "mlp.down_proj": ("ffn_down", model.size.hidden),
    }
    for i in range(model.size.layers):
        for name, (gguf_name, width) in widths.items():
            if f"model.layers.{i}.{name}.bias" not in model.checkpoint.tensors:
                zeros = np.zeros(width, np.float32)
                extra.append(from_array(f"blk.{i}.{gguf_name}.bias", zeros))
    return extra


def explanation(model: SourceModel) -> str:
    """What was done, in one sentence."""
    size = model.size
    return (
        f"{size.heads} heads of {size.head_dim} on hidden_size {size.hidden} do not load as "
        f"nemotron in llama.cpp: written as the equivalent jais2 model with heads of "
        f"{wide_head(model).size}, the added dimensions zero"
    )


WIDE_NEMOTRON = replace(
    NEMOTRON,
    arch="jais2",
    sizes=_sizes,
    mappings=(
        NORMS_AROUND_ONE,
        TensorMapping(r"(.*\.[qk]_proj\.(?:weight|bias))", {r"\1": (turned_rows,)}),
        TensorMapping(r"(.*\.v_proj\.(?:weight|bias))", {r"\1": (plain_rows,)}),
        TensorMapping(r"(.*\.o_proj\.weight)", {r"\1": (wider_columns,)}),
    ),
    synthesized_tensors=_missing_biases,
    keys=(
        *SIZES,
        ("rope.freq_base", lambda model: wide_head(model).base),
        ("rope.scaling.type", constant("yarn")),
        ("rope.scaling.factor", constant(FACTOR)),
        ("rope.scaling.original_context_length", lambda model: wide_head(model).original_context),
        ("rope.scaling.attn_factor", lambda model: wide_head(model).attention_factor),
        ("attention.layer_norm_epsilon", "norm_eps"),
        ("attention.key_length", lambda model: wide_head(model).size),
        ("attention.value_length", lambda model: wide_head(model).size),
        (FILE_TYPE, constant(None)),
        ("vocab_size", "vocab_size"),
        ("rope.dimension_count", lambda model: wide_head(model).size),
        ("minitron.conversion", explanation),
    ),
    after=(),
)


def by_shape(model: SourceModel) -> Architecture:
    """Nemotron, by the shape of its heads: llama.cpp's own loader takes only square ones."""
    square = model.size.heads * model.size.head_dim == model.size.hidden
    return NEMOTRON if square else WIDE_NEMOTRON


ARCHITECTURES = {"NemotronForCausalLM": replace(NEMOTRON, variant=by_shape)}
