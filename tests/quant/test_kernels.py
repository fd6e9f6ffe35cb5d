"""The kernels of quant/kernels: the bytes of ggml's encoders, on whatever they are given."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.kernels import built_library
from minitron_core.gguf import F16, TYPE, TYPE_ID, open_gguf, row_bytes
from minitron_core.kernels import AVX2, INSTRUCTIONS
from minitron_engine.llama.library import ggml
from minitron_quant.gptq.codebook_types import CODEBOOKS, codewords
from minitron_quant.kernels import self_check
from minitron_quant.kernels.codebooks import codeword_levels, has_codebook
from minitron_quant.kernels.encode import KERNEL_TYPES
from minitron_quant.kernels.self_check import NEEDS_IMPORTANCE, RECORDED, by_ggml

Values = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Random = np.random.Generator
NAMES = sorted(TYPE[number].name for number in KERNEL_TYPES)
COLUMNS = 1024


@cache
def library() -> ctypes.CDLL:
    """The compiled kernels with every codebook set."""
    loaded = built_library().library
    assert loaded is not None
    for number in filter(has_codebook, KERNEL_TYPES):
        levels = codeword_levels(number)
        assert loaded.kernels_set_codebook(number, levels.ctypes.data, *levels.shape) == 0
    return loaded


def encode(
    level: int, ggml_type: int, values: Values, importance: Values | None
) -> tuple[Bytes, int]:
    """Blocks by the kernels, and how many rows ggml encoded."""
    blocks = np.full(len(values) * row_bytes(ggml_type, values.shape[1]), 0x5A, np.uint8)
    left = library().kernels_encode(
        level,
        ggml_type,
        values.ctypes.data,
        blocks.ctypes.data,
        *values.shape,
        None if importance is None else importance.ctypes.data,
        ctypes.cast(ggml().ggml_quantize_chunk, ctypes.c_void_p),
    )
    return blocks, left


def same_bytes(name: str, values: Values, importance: Values) -> None:
    """Every instruction set, with importance and without, gives what ggml gives."""
    number = TYPE_ID[name]
    values, importance = np.ascontiguousarray(values, np.float32), importance.astype(np.float32)
    for case in (importance,) if name in NEEDS_IMPORTANCE else (importance, None):
        expected = by_ggml(number, values, case)
        for level in range(AVX2, built_library().level + 1):
            blocks, left = encode(level, number, values, case)
            assert left >= 0
            differing = np.flatnonzero((blocks != expected).reshape(len(values), -1).any(axis=1))
            assert not len(differing), (INSTRUCTIONS[level], case is not None, differing)


def normal(random: Random, rows: int = 8, columns: int = COLUMNS) -> Values:
    return random.standard_normal((rows, columns), np.float32)


def rounded_to_bf16(values: Values) -> Values:
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def emptied(random: Random, size: int) -> Values:
    """A part of all runs of `size` weights is zero."""
    return normal(random) * np.repeat(random.random((8, COLUMNS // size)) > 0.4, size, axis=1)


def wide(random: Random, columns: int = COLUMNS) -> Values:
    return (10.0 ** random.uniform(-12, 6, columns)).astype(np.float32)


CASES: dict[str, Callable[[Random], tuple[Values, Values]]] = {
    "outliers": lambda r: (
        normal(r) * np.where(r.random((8, COLUMNS)) < 0.003, 50, 1),
        r.random(COLUMNS),
    ),
    "heavy tails": lambda r: (r.standard_t(2, (8, COLUMNS)), r.random(COLUMNS) ** 4),
    "empty sub-blocks of 16": lambda r: (emptied(r, 16), r.random(COLUMNS)),
    "empty sub-blocks of 32": lambda r: (emptied(r, 32), r.random(COLUMNS)),
    "empty super-blocks": lambda r: (emptied(r, 256), r.random(COLUMNS)),
    "sparse, zeros of both signs": lambda r: (
        normal(r) * r.choice(np.float32([0, -0.0, 1]), (8, COLUMNS), p=[0.5, 0.3, 0.2]),
        r.random(COLUMNS),
    ),
    "zeros of both signs": lambda r: (
        r.choice(np.float32([0, -0.0]), (4, COLUMNS)),
        r.random(COLUMNS),
    ),
    "importance with zeros": lambda r: (
        normal(r),
        np.where(r.random(COLUMNS) < 0.5, 0, r.random(COLUMNS)),
    ),
    "importance zero in whole blocks": lambda r: (
        normal(r),
        np.repeat(r.random(COLUMNS // 32) < 0.5, 32) * r.random(COLUMNS),
    ),
    "no importance at all": lambda r: (normal(r, 2), np.zeros(COLUMNS)),
    "importances of 1e-12 to 1e6": lambda r: (normal(r, 32), wide(r)),
    "those and outliers": lambda r: (r.standard_t(2, (16, COLUMNS)), wide(r)),
    "scales by block": lambda r: (
        normal(r, 16) * np.repeat(np.exp2(r.integers(-60, 20, (16, COLUMNS // 32))), 32, axis=1),
        r.random(COLUMNS),
    ),
    "scales by weight": lambda r: (
        normal(r, 16) * np.exp2(r.integers(-40, 20, (16, COLUMNS))),
        wide(r),
    ),
    "ties": lambda r: (np.round(normal(r) * 4), np.ones(COLUMNS)),
    "few values, few importances": lambda r: (
        np.round(normal(r) * 2),
        np.round(r.random(COLUMNS) * 3),
    ),
    "positive": lambda r: (np.abs(normal(r)), r.random(COLUMNS)),
    "negative": lambda r: (-np.abs(normal(r)), r.random(COLUMNS)),
    "far from zero": lambda r: (normal(r) + 10, r.random(COLUMNS)),
    "constant": lambda r: (np.full((4, COLUMNS), 0.37), r.random(COLUMNS)),
    "one weight in 32": lambda r: (
        normal(r) * (np.arange(COLUMNS) % 32 == 5),
        r.random(COLUMNS),
    ),
    "bf16": lambda r: (rounded_to_bf16(normal(r) / 50), r.random(COLUMNS)),
    "f16": lambda r: ((normal(r) / 50).astype(np.float16), r.random(COLUMNS)),
    "ramp": lambda r: (np.tile(np.arange(-128, 128), (2, 4)), np.ones(COLUMNS)),
}


@pytest.mark.parametrize("seeds", [[0], pytest.param(range(1, 9), marks=pytest.mark.harden)])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_kernels_give_the_bytes_of_ggml(case: str, name: str, seeds: Sequence[int]) -> None:
    for seed in seeds:
        same_bytes(name, *CASES[case](np.random.default_rng(seed)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exponent", [-44, -40, -38, -30, -20, -15, -12, -8, -4, 0, 4, 7])
def test_kernels_give_the_bytes_of_ggml_at_every_scale(exponent: int, name: str) -> None:
    random = np.random.default_rng(0)
    same_bytes(name, normal(random, 4) * 10.0**exponent, random.random(COLUMNS))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [256, 512, 768, 2560, 18944])
def test_kernels_give_the_bytes_of_ggml_for_rows_of_every_length(name: str, columns: int) -> None:
    random = np.random.default_rng(columns)
    same_bytes(name, normal(random, max(1, 6_000 // columns), columns), random.random(columns))


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Values, Values]:
    """Rows built of pieces of 8 weights, so that every kind of block has odd neighbours."""
    rows, columns = draw(st.integers(1, 5)), 256 * draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = normal(random, rows, columns) * np.float32(10.0 ** draw(st.integers(-12, 4)))
    pieces = values.reshape(-1, 8)
    for kind in draw(st.lists(st.sampled_from(PIECES), max_size=3)):
        chosen = random.random(len(pieces)) < draw(st.sampled_from([0.05, 0.3, 0.9]))
        pieces[chosen] = kind(random, pieces[chosen])
    importance = random.random(columns, np.float32)
    spread = draw(st.sampled_from([0, 4, 18]))
    importance *= (10.0 ** random.uniform(-2 * spread / 3, spread / 3, columns)).astype(np.float32)
    importance[random.random(columns) < draw(st.sampled_from([0, 0.1, 0.8]))] = 0
    if draw(st.booleans()):
        importance = np.repeat(importance[::16], 16)
    return values, importance


PIECES: list[Callable[[Random, Values], Values]] = [
    lambda random, part: part * 0,
    lambda random, part: part * np.float32(-0.0),
    lambda random, part: np.abs(part),
    lambda random, part: part[:, :1].repeat(8, axis=1),
    lambda random, part: part * np.float32(1e-6),
    lambda random, part: part * np.float32(300),
    lambda random, part: part * np.float32(1e-33),  # denormal with the smallest scales
    lambda random, part: rounded_to_bf16(part),
    lambda random, part: np.ldexp(part, random.integers(-30, 6, part.shape)),
    lambda random, part: np.round(part / max(np.abs(part).max(initial=0), 1e-30) * 4) / 4,
]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(tensors())
def test_kernels_give_the_bytes_of_ggml_on_anything(
    name: str, tensor: tuple[Values, Values]
) -> None:
    same_bytes(name, *tensor)


@pytest.fixture(scope="module", params=["nano_llama", "nano_nemotron"])
def weights(request: pytest.FixtureRequest) -> list[Values]:
    """Some rows of every matrix of a trained model."""
    file = open_gguf(request.getfixturevalue(request.param))
    found = []
    for info in file.tensors:
        if info.type == F16 and info.shape[0] % 256 == 0:
            rows = file.data(info).view(np.float16).astype(np.float32).reshape(-1, info.shape[0])
            found.append(np.ascontiguousarray(rows[:: max(1, len(rows) // 4)]))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_kernels_give_the_bytes_of_ggml_on_trained_weights(
    name: str, weights: list[Values]
) -> None:
    random = np.random.default_rng(0)
    for matrix in weights:
        same_bytes(name, matrix, random.random(matrix.shape[1]) ** 3 * 10)


@pytest.mark.parametrize("name", NAMES)
def test_rows_beyond_what_is_proved_go_to_ggml(name: str) -> None:
    random = np.random.default_rng(0)
    values = normal(random, 40, 512)
    values[7] *= np.float32(1e14)
    number, importance = TYPE_ID[name], random.random(512, np.float32)
    blocks, left = encode(AVX2, number, values, importance)
    assert np.array_equal(blocks, by_ggml(number, values, importance))
    # the types of blocks of 32 with the least arithmetic cover those rows too
    assert left == (0 if name in ("iq4_nl", "q8_0") else 1)


@pytest.mark.parametrize("name", ["q4_K", "q6_K", "q4_0"])
@pytest.mark.parametrize("bad", [-1.0, np.inf, np.nan, 1e30])
def test_rows_with_unusable_importance_go_to_ggml(name: str, bad: float) -> None:
    random = np.random.default_rng(0)
    values, importance = normal(random, 3, 256), random.random(256, np.float32)
    importance[99] = bad
    blocks, left = encode(AVX2, TYPE_ID[name], values, importance)
    assert left == 3
    assert np.array_equal(blocks, by_ggml(TYPE_ID[name], values, importance))


@pytest.fixture
def fresh() -> Iterator[ctypes.CDLL]:
    """The library without codebooks: a copy of its own in this process."""
    with built_library().copied() as loaded:
        assert loaded.library is not None
        yield loaded.library


@pytest.mark.parametrize(
    ("level", "name", "columns"),
    [
        *((0, "q4_K", 256), (3, "q4_K", 256), (-1, "q4_K", 256), (1, "f16", 256)),
        *((1, "tq1_0", 256), (1, "q4_K", 128), (1, "q4_0", 48), (1, "q4_K", 0)),
        *((1, "iq2_xs", 256), (1, "iq1_m", 256)),
    ],
)
def test_the_library_refuses_what_it_has_no_kernel_for(
    fresh: ctypes.CDLL, level: int, name: str, columns: int
) -> None:
    values, blocks = np.ones((1, 256), np.float32), np.full(512, 0x5A, np.uint8)
    pointers = values.ctypes.data, blocks.ctypes.data
    number = TYPE_ID[name]
    assert fresh.kernels_encode(level, number, *pointers, 1, columns, *pointers[:1], None) == -1
    assert (blocks == 0x5A).all()


@pytest.mark.parametrize(
    ("name", "count", "dims", "value"),
    [
        *(("q4_K", 16, 8, 0), ("iq2_xs", 0, 8, 0), ("iq2_xs", 4096, 8, 0)),
        *(("iq2_xs", 16, 5, 0), ("iq2_xs", 16, 8, 3), ("iq3_s", 16, 4, 8), ("iq3_s", 16, 4, -1)),
    ],
)
def test_the_library_refuses_invalid_codewords(
    fresh: ctypes.CDLL, name: str, count: int, dims: int, value: int
) -> None:
    levels = np.full(max(count, 1) * dims, value, np.int8)
    assert fresh.kernels_set_codebook(TYPE_ID[name], levels.ctypes.data, count, dims) == -1


@pytest.mark.parametrize("name", CODEBOOKS)
def test_codeword_levels_are_those_of_the_codewords(name: str) -> None:
    table = codewords(name)
    levels = codeword_levels(TYPE_ID[name])
    assert levels.shape == table.shape
    assert np.array_equal(np.unique(table)[levels], table)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_digests_are_those_of_ggml(name: str) -> None:
    values, importance = self_check.sample()
    made = [self_check.digest(by_ggml(TYPE_ID[name], values, importance))]
    if len(RECORDED[name]) > 1:
        made.append(self_check.digest(by_ggml(TYPE_ID[name], values, None)))
    assert tuple(made) == RECORDED[name]
    assert self_check.recordings_hold()
