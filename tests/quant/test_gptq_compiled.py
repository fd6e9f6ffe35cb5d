"""GPTQ in the compiled library: numpy's codes for any shape, instruction set and row."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.kernels import built_library
from minitron_core.gguf import TYPE, TYPE_ID, open_gguf
from minitron_core.kernels import AVX2, Kernels
from minitron_quant.blocks import decode_blocks, encode_blocks
from minitron_quant.gptq.bitfields import read, write
from minitron_quant.gptq.cholesky import BlockFactor, error_of, factor_block
from minitron_quant.gptq.codebook_types import CODEBOOKS
from minitron_quant.gptq.column_solver import solve
from minitron_quant.gptq.compiled_solver import solve_compiled
from minitron_quant.gptq.encode_rows import coder_of, encode_rows
from minitron_quant.gptq.scalar_layouts import LAYOUTS
from minitron_quant.kernels import gptq

TYPES = [*LAYOUTS, *CODEBOOKS]
Values = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Use = Callable[[int], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes the library compute with an instruction set; 0: there is no library."""
    built = built_library()

    def choose(level: int) -> None:
        if level > built.level:
            pytest.skip("this processor has no AVX-512")
        loaded = Kernels(built.library if level else None, level, "")
        monkeypatch.setattr(gptq, "kernels", lambda: loaded)

    choose(built.level)
    return choose


def covariance(columns: int, seed: int = 0) -> NDArray[np.float64]:
    """Of inputs with a few strong directions, and some columns much larger."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((48, columns)) * (1 + 9 * (random.random(columns) > 0.95))
    return mix.T @ mix / 48 + 0.05 * np.eye(columns)


def factors(columns: int, width: int, seed: int = 0) -> list[BlockFactor]:
    full = covariance(columns, seed)
    starts = range(0, columns, width)
    return [factor_block(k, full[k : k + width, k : k + width], 0.02) for k in starts]


def weights(rows: int, columns: int, seed: int = 0) -> Values:
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, columns), np.float32) / np.float32(20)


def plain(name: str, values: Values) -> Bytes:
    importance = np.ones(values.shape[1], np.float32)
    return encode_blocks(TYPE_ID[name], values, importance)


def agrees(name: str, values: Values, blocks: list[BlockFactor]) -> float:
    """The share of rows with numpy's bytes.

    In the others a choice between two that are equally good went the other way, and moved all that
    follow: they err a little more, or a little less.
    """
    kind, before = TYPE_ID[name], plain(name, values)
    reference = coder_of(kind, before, len(values))
    solve(reference, values, blocks)
    theirs = reference.pack().reshape(len(values), -1)
    packed, found = solve_compiled(coder_of(kind, before, len(values)), values, blocks)
    ours = packed.reshape(len(values), -1)
    wanted, errors = (
        error_of(decode_blocks(kind, data, values.shape) - values, blocks)
        for data in (theirs, ours)
    )
    np.testing.assert_allclose(found, errors, rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(errors, wanted, rtol=0.05, atol=1e-12)
    return float((ours == theirs).all(axis=1).mean())


@pytest.mark.parametrize("name", TYPES)
def test_solve_compiled_chooses_numpys_codes(name: str, use: Use) -> None:
    assert agrees(name, weights(24, 512), factors(512, 256)) > 0.9


@pytest.mark.parametrize("name", ["q3_K", "iq2_xs"])
@pytest.mark.parametrize("model", ["nano_llama", "nano_nemotron"])
def test_solve_compiled_chooses_numpys_codes_for_real_weights(
    name: str, model: str, use: Use, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(model)
    file = open_gguf(path)
    info = file.tensor("blk.0.ffn_down.weight")
    columns = info.shape[0]
    data = file.data(info).reshape(info.rows, -1)[:32]
    values = decode_blocks(info.type, data, (32, columns))
    assert agrees(name, values, factors(columns, 256)) > 0.9


@settings(max_examples=15)
@given(
    name=st.sampled_from(TYPES),
    rows=st.integers(1, 40),
    blocks=st.integers(1, 3),
    width=st.sampled_from([32, 64, 256, 768]),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
    seed=st.integers(0, 100),
)
def test_solve_compiled_agrees_for_any_shape(
    name: str, rows: int, blocks: int, width: int, scale: float, seed: int
) -> None:
    built_library()
    columns = 256 * blocks
    values = weights(rows, columns, seed) * np.float32(scale)
    values[0, :40] = 0
    width = width if columns % width == 0 else 256
    kind, found = TYPE_ID[name], factors(columns, width, seed)
    before = plain(name, values)
    reference = coder_of(kind, before, rows)
    solve(reference, values, found)
    packed, _ = solve_compiled(coder_of(kind, before, rows), values, found)
    wanted, errors = (
        error_of(decode_blocks(kind, data, values.shape) - values, found).sum()
        for data in (reference.pack(), packed)
    )
    assert errors <= wanted * 1.05  # see agrees


@pytest.mark.parametrize("name", ["q3_K", "q4_1", "iq4_xs", "iq1_m", "iq2_xs", "iq3_xxs"])
def test_rows_get_the_same_codes_alone_and_with_any_instructions(name: str, use: Use) -> None:
    values, blocks = weights(33, 256), factors(256, 256)
    kind, before = TYPE_ID[name], plain(name, values).reshape(33, -1)
    whole = encode_rows(kind, values, before.reshape(-1), blocks).reshape(33, -1)
    use(AVX2)
    assert np.array_equal(encode_rows(kind, values, before.reshape(-1), blocks), whole.reshape(-1))
    for part in (slice(0, 1), slice(17, 33)):
        alone = encode_rows(kind, values[part], before[part].reshape(-1), blocks)
        assert np.array_equal(alone, whole[part].reshape(-1))


@pytest.mark.parametrize("name", ["q3_K", "iq2_xs"])
def test_encode_rows_gives_the_same_bytes_without_the_library(name: str, use: Use) -> None:
    values, blocks = weights(16, 512), factors(512, 512)
    with_it = encode_rows(TYPE_ID[name], values, plain(name, values), blocks)
    use(0)
    without = encode_rows(TYPE_ID[name], values, plain(name, values), blocks)
    assert np.array_equal(with_it, without)


def test_encode_rows_keeps_plain_rows_where_the_covariance_is_no_number(use: Use) -> None:
    values, before = weights(4, 256), plain("q4_0", weights(4, 256))
    block = replace(factors(256, 256)[0], added=math.nan)
    assert np.array_equal(encode_rows(TYPE_ID["q4_0"], values, before, [block]), before)


@pytest.mark.parametrize("name", TYPES)
def test_write_field_is_numpys(name: str, use: Use) -> None:
    layout = LAYOUTS.get(name) or CODEBOOKS[name]
    size = TYPE[TYPE_ID[name]].block_bytes
    random = np.random.default_rng(3)
    blocks = random.integers(0, 256, (5, size), dtype=np.uint8)
    others = random.integers(0, 256, (5, size), dtype=np.uint8)
    fields = (getattr(layout, field, None) for field in ("codes", "index", "scales", "signs"))
    for field in filter(None, fields):
        numbers = read(others, field)
        written = []
        for level in (AVX2, 0):
            use(level)
            copy = blocks.copy()
            write(copy, field, numbers)
            written.append(copy)
        assert np.array_equal(written[0], written[1])
        assert np.array_equal(read(written[0], field), numbers)
