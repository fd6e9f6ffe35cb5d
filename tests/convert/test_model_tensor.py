"""Changes of tensors: read in any parts, they give what numpy makes of the whole array."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_convert.architectures import deepseek, gpt_oss
from minitron_convert.architectures import model_tensor as steps
from minitron_convert.architectures.model_tensor import ModelTensor, Sizes, Step, WrongShape

SIZES: Sizes = {
    "head": 4,
    "heads": 2,
    "vocab": 5,
    "ssm_groups": 3,
    "key_plain": 2,
    "value_head": 4,
}


def tensor_of(values: np.ndarray, dtype: str = "F32") -> ModelTensor:
    """A tensor over an array, read as a checkpoint's is: by rows of the last dimension."""
    rows = values.reshape(-1, values.shape[-1]) if values.ndim > 2 else values
    return ModelTensor("x", values.shape, dtype, lambda start, stop: rows[start:stop])


def numbers(*shape: int) -> np.ndarray:
    """Different values."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def paired(values: np.ndarray) -> np.ndarray:
    """Row i of a head's first half and row i of its second, side by side."""
    heads = values.reshape(-1, 4, *values.shape[1:])
    return heads[:, [0, 2, 1, 3]].reshape(values.shape)


def per_head(values: np.ndarray) -> np.ndarray:
    """The heads of a projection to keys and values."""
    return values.reshape(2, 6, values.shape[-1])


CASES: dict[str, tuple[Step, np.ndarray, Callable[[np.ndarray], np.ndarray]]] = {
    "rotary_pairs": (steps.rotary_pairs, numbers(12, 3), paired),
    "rotary_pairs of a bias": (steps.rotary_pairs, numbers(8), paired),
    "add_one": (steps.add_one, numbers(7), lambda x: x + 1),
    "negative_exp": (steps.negative_exp, -numbers(6), lambda x: -np.exp(x.astype(np.float64))),
    "as_column": (steps.as_column, numbers(6), lambda x: x[:, None]),
    "without_middle": (steps.without_middle, numbers(6, 1, 4), lambda x: x[:, 0]),
    "in_state_groups": (steps.in_state_groups, numbers(12), lambda x: x.reshape(3, 4)),
    "first_half": (steps.first_half, numbers(6, 3), lambda x: x[:3]),
    "first_half of a stack": (steps.first_half, numbers(3, 4, 5), lambda x: x[:, :2]),
    "second_half": (steps.second_half, numbers(6, 3), lambda x: x[3:]),
    "second_half of a stack": (steps.second_half, numbers(3, 4, 5), lambda x: x[:, 2:]),
    "even_rows": (steps.even_rows, numbers(3, 6, 2), lambda x: x[:, ::2]),
    "odd_rows": (steps.odd_rows, numbers(3, 6, 2), lambda x: x[:, 1::2]),
    "even_columns": (steps.even_columns, numbers(3, 6), lambda x: x[:, ::2]),
    "odd_columns": (steps.odd_columns, numbers(3, 6), lambda x: x[:, 1::2]),
    "vocabulary_rows": (steps.vocabulary_rows, numbers(8, 3), lambda x: x[:5]),
    "keys of a latent vector": (
        deepseek._keys_turned,
        numbers(12, 5),
        lambda x: per_head(x)[:, :2].swapaxes(1, 2),
    ),
    "values of a latent vector": (
        deepseek._values,
        numbers(12, 5),
        lambda x: per_head(x)[:, 2:],
    ),
}


def parts_of(tensor: ModelTensor, cuts: list[int]) -> np.ndarray:
    """All rows, read in parts that end at `cuts` and fit the tensor's step."""
    inner = (cut % (tensor.rows + 1) // tensor.step * tensor.step for cut in cuts)
    ends = sorted({0, tensor.rows, *inner})
    read = [tensor.read(start, stop) for start, stop in pairwise(ends)]
    return np.concatenate(read).reshape(tensor.shape)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 100), max_size=4))
def test_step_reads_in_parts_what_numpy_makes_of_the_whole(name: str, cuts: list[int]) -> None:
    step, values, wanted = CASES[name]
    changed = step(tensor_of(values), SIZES)
    expected = wanted(values).astype(np.float32)
    assert changed.shape == expected.shape
    assert np.array_equal(parts_of(changed, cuts), expected)


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 100), max_size=4))
def test_stack_reads_in_parts_the_experts_in_order(cuts: list[int]) -> None:
    experts = [numbers(4, 3) + 100 * i for i in range(3)]
    whole = steps.stack("x", [tensor_of(expert) for expert in experts])
    assert whole.shape == (3, 4, 3)
    assert np.array_equal(parts_of(whole, cuts), np.stack(experts))


@pytest.mark.parametrize(
    ("step", "shape"),
    [
        (steps.rotary_pairs, (6, 2)),
        (steps.in_state_groups, (10,)),
        (steps.without_middle, (4, 2, 3)),
        (deepseek._values, (11, 5)),
    ],
)
def test_step_refuses_a_shape_that_does_not_fit(step: Step, shape: tuple[int, ...]) -> None:
    with pytest.raises(WrongShape):
        step(tensor_of(numbers(*shape)), SIZES)


def test_stack_refuses_experts_of_other_shapes() -> None:
    with pytest.raises(WrongShape):
        steps.stack("x", [tensor_of(numbers(4, 3)), tensor_of(numbers(3, 4))])
    with pytest.raises(WrongShape):
        steps.stack("x", [])


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_repack_keeps_the_values_of_mxfp4(seed: int) -> None:
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (2, 3, 16)).astype(np.uint8)
    scales = random.integers(110, 140, (2, 3)).astype(np.uint8)
    # the numbers of four bits, E2M1, and scales that are powers of two around 127
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(2, 3, 32)
    wanted = table[codes] * np.exp2(scales.astype(np.float32) - 127)[..., None]
    packed = gpt_oss.repack(blocks, scales)
    found = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(found.reshape(wanted.shape), wanted)
