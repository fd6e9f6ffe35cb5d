"""Tensors of the output, described before anything is read, and the changes made to them.

Every change is local to rows, so a tensor of any size is read, changed and written in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from minitron_convert.checkpoint.tensor_ref import DTYPES, Array, TensorRef
from minitron_convert.encode import MXFP4_BLOCK, to_float

Sizes = Mapping[str, int]  # the numbers of a layer by their names in shapes.py


class WrongShape(ValueError):
    """A tensor whose shape a change cannot work on."""


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of the output: `read(start, stop)` gives rows, in the data type `dtype`.

    `shape` is in numpy's order. A tensor of more than two dimensions is read by the rows of its
    last dimension, one of two or fewer by its first; `start` and `stop` are multiples of `step`.
    `dtype` is one of safetensors' names, or MXFP4 (rows of bytes, 17 for 32 elements).
    `full_precision` marks tensors that stay f32 whatever the type of the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], Array]
    step: int = 1
    full_precision: bool = False

    @property
    def rows(self) -> int:
        """The number of rows."""
        return prod(self.shape[:-1]) if len(self.shape) > 2 else prod(self.shape[:1])

    @property
    def row_elements(self) -> int:
        """The number of elements of a row."""
        return self.shape[-1] if len(self.shape) > 2 else prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """The number of bytes of a row as it is read."""
        if self.dtype == "MXFP4":
            return self.row_elements // MXFP4_BLOCK * 17
        return self.row_elements * DTYPES[self.dtype].itemsize


Step = Callable[[ModelTensor, Sizes], ModelTensor]


def unchanged(tensor: TensorRef) -> ModelTensor:
    """The tensor as it is, under its name in the checkpoint."""
    source = tensor
    if len(tensor.shape) > 2:
        source = replace(tensor, shape=(prod(tensor.shape[:-1]), tensor.shape[-1]))
    return ModelTensor(tensor.name, tensor.shape, tensor.dtype, source.read)


def from_array(name: str, values: Array) -> ModelTensor:
    """A tensor that the checkpoint lacks, from float32 values of one or two dimensions."""
    return ModelTensor(name, values.shape, "F32", lambda start, stop: values[start:stop])


def pair_rows(rows: Array, head_dim: int) -> Array:
    """Rows of whole heads, reordered so that the two of each rotary pair stand together.

    transformers turns row i with row i + head_dim/2; llama.cpp turns row 2i with row 2i + 1.
    """
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def rotary_pairs(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """Queries or keys in llama.cpp's order of rotary pairs."""
    head = sizes["head"]
    if tensor.rows % head or head % 2:
        raise WrongShape(f"{tensor.rows} rows are not whole heads of {head}")

    def read(start: int, stop: int) -> Array:
        return pair_rows(tensor.read(start, stop), head)

    return replace(tensor, read=read, step=head)


def add_one(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """Norm weights around 1 from those stored around 0.

    float16 is added to in float16, as llama.cpp's converter does; all else in float32.
    """

    def read(start: int, stop: int) -> Array:
        values = to_float(tensor.read(start, stop), tensor.dtype)
        return np.add(values, 1, dtype=values.dtype)

    return replace(tensor, dtype="F16" if tensor.dtype == "F16" else "F32", read=read)


def negative_exp(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """−exp of the values: Mamba stores the logarithm of how fast a state decays.

    Computed in float64 and rounded once, where torch's float32 result depends on the processor.
    """

    def read(start: int, stop: int) -> Array:
        values = to_float(tensor.read(start, stop), tensor.dtype)
        with np.errstate(over="ignore"):
            decay: Array = -np.exp(values.astype(np.float64)).astype(np.float32)
        return decay

    return replace(tensor, dtype="F32", read=read)


def reshaped(tensor: ModelTensor, shape: tuple[int, ...]) -> ModelTensor:
    """The same elements in rows of another length, a multiple of the old one."""
    if prod(shape) != prod(tensor.shape):
        raise WrongShape(f"{list(tensor.shape)} does not hold {prod(shape)} elements")
    new = replace(tensor, shape=shape)
    ratio = new.row_elements // tensor.row_elements

    def read(start: int, stop: int) -> Array:
        return tensor.read(start * ratio, stop * ratio).reshape(stop - start, new.row_elements)

    return replace(new, read=read)


def as_column(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """[n] → [n, 1]."""
    return reshaped(tensor, (tensor.rows, 1))


def without_middle(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """[channels, 1, kernel] → [channels, kernel]."""
    return reshaped(tensor, (tensor.shape[0], tensor.shape[-1]))


def in_state_groups(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """[inner] → [groups, inner / groups] of a state-space layer."""
    groups = sizes["ssm_groups"]
    return reshaped(tensor, (groups, prod(tensor.shape) // groups))


def take_rows(tensor: ModelTensor, chosen: range) -> ModelTensor:
    """Some rows of a matrix, or of every matrix of a stack of them."""
    per_matrix, count = tensor.shape[-2], len(chosen)

    def read(start: int, stop: int) -> Array:
        parts = []
        while start < stop:
            matrix, first = divmod(start, count)
            last = min(count, first + stop - start)
            offset = matrix * per_matrix
            rows = tensor.read(offset + chosen[first], offset + chosen[last - 1] + 1)
            parts.append(rows[:: chosen.step])
            start += last - first
        return np.concatenate(parts)

    return replace(tensor, shape=(*tensor.shape[:-2], count, tensor.shape[-1]), read=read)


def first_half(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """The first half of the rows of a matrix, or of every matrix of a stack."""
    return take_rows(tensor, range(tensor.shape[-2] // 2))


def second_half(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """The other half of the rows."""
    return take_rows(tensor, range(tensor.shape[-2] // 2, tensor.shape[-2]))


def even_rows(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """Every second row of a matrix, or of every matrix of a stack, from the first on."""
    return take_rows(tensor, range(0, tensor.shape[-2], 2))


def odd_rows(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """Every second row from the second on."""
    return take_rows(tensor, range(1, tensor.shape[-2], 2))


def even_columns(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """Every second element of each row, from the first on."""
    return _every_second_column(tensor, 0)


def odd_columns(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """Every second element of each row, from the second on."""
    return _every_second_column(tensor, 1)


def _every_second_column(tensor: ModelTensor, first: int) -> ModelTensor:
    shape = (*tensor.shape[:-1], tensor.shape[-1] // 2)
    return replace(
        tensor, shape=shape, read=lambda start, stop: tensor.read(start, stop)[..., first::2]
    )


def vocabulary_rows(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """The rows of tokens that exist: some embeddings are longer than the tokenizer."""
    return take_rows(tensor, range(min(sizes["vocab"], tensor.shape[0])))


def stack(name: str, tensors: Sequence[ModelTensor]) -> ModelTensor:
    """Matrices of one shape as one tensor of three dimensions: one matrix per expert."""
    if not tensors:
        raise WrongShape("there are no experts")
    first = tensors[0]
    if any((t.shape, t.dtype) != (first.shape, first.dtype) for t in tensors):
        raise WrongShape("the experts differ in shape or data type")
    each = first.rows

    def read(start: int, stop: int) -> Array:
        parts = []
        while start < stop:
            expert, row = divmod(start, each)
            last = min(each, row + stop - start)
            parts.append(tensors[expert].read(row, last))
            start += last - row
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return ModelTensor(name, (len(tensors), *first.shape), first.dtype, read, first.step)
