"""GPTQ of every type: blocks hold the chosen codes and are never worse than plain ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from minitron_core.gguf import TYPE, TYPE_ID
from minitron_engine.llama.library import ggml
from minitron_quant.blocks import decode_blocks, encode_blocks
from minitron_quant.gptq.bitfields import Field, Plane, read, write
from minitron_quant.gptq.cholesky import BlockFactor, error_of, factor_block
from minitron_quant.gptq.codebook_types import CODEBOOKS, codewords
from minitron_quant.gptq.column_solver import solve
from minitron_quant.gptq.encode_rows import coder_of, encode_rows, supports
from minitron_quant.gptq.scalar_layouts import LAYOUTS

ROWS, COLUMNS = 12, 512
TYPES = [*LAYOUTS, *CODEBOOKS]
Bytes = NDArray[np.uint8]


def inputs(columns: int = COLUMNS, rank: int = 64) -> NDArray[np.float64]:
    """A covariance as layers have it: a few strong directions, and some columns much larger."""
    random = np.random.default_rng(1)
    mix = random.standard_normal((rank, columns)) * (1 + 9 * (random.random(columns) > 0.95))
    return mix.T @ mix / rank + 0.05 * np.eye(columns)


def weights() -> NDArray[np.float32]:
    return np.random.default_rng(2).standard_normal((ROWS, COLUMNS), np.float32) / 20


def plain(kind: int, values: NDArray[np.float32], importance: NDArray[np.float64]) -> Bytes:
    # not by ggml itself, which builds tables for seconds: the kernels give its bytes
    return encode_blocks(kind, values, np.ascontiguousarray(importance, np.float32))


def factors(covariance: NDArray[np.float64], width: int = COLUMNS) -> list[BlockFactor]:
    return [
        factor_block(k, covariance[k : k + width, k : k + width], 0.02)
        for k in range(0, len(covariance), width)
    ]


def errors(kind: int, data: Bytes, blocks: list[BlockFactor]) -> NDArray[np.float64]:
    return error_of(decode_blocks(kind, data, (ROWS, COLUMNS)) - weights(), blocks)


@pytest.mark.parametrize("name", TYPES)
def test_encode_rows_lowers_errors_and_worsens_no_row(name: str) -> None:
    kind, blocks = TYPE_ID[name], factors(inputs(), 256)
    before = plain(kind, weights(), inputs().diagonal())
    after = encode_rows(kind, weights(), before, blocks)
    assert ggml().ggml_validate_row_data(kind, after.ctypes.data, after.nbytes)
    plain_errors, our_errors = errors(kind, before, blocks), errors(kind, after, blocks)
    assert (our_errors <= plain_errors).all()
    assert our_errors.sum() < 0.7 * plain_errors.sum()


@pytest.mark.parametrize("name", TYPES)
def test_coders_pack_what_the_library_decodes(name: str) -> None:
    kind = TYPE_ID[name]
    coder = coder_of(kind, plain(kind, weights(), inputs().diagonal()), ROWS)
    remains = solve(coder, weights(), factors(inputs()))
    values = decode_blocks(kind, coder.pack(), (ROWS, COLUMNS))
    # what remains was rounded once, when the value was taken from the weight
    np.testing.assert_allclose(weights() - remains, values, rtol=0, atol=1e-7)


def fields_of(name: str) -> list[Field]:
    if name in CODEBOOKS:
        lattice = CODEBOOKS[name]
        given = [lattice.d, lattice.index, lattice.scales, lattice.signs, lattice.shifts]
    else:
        layout = LAYOUTS[name]
        halves = [
            (Plane(at, (0,), 16, word=2),) for at in (layout.d, layout.dmin) if at is not None
        ]
        given = [*halves, layout.codes, layout.scales, layout.mins]
    return [field for field in given if field is not None]


@pytest.mark.parametrize("name", TYPES)
def test_fields_cover_every_bit_of_a_block_once(name: str) -> None:
    blocks = np.zeros((1, TYPE[TYPE_ID[name]].block_bytes), np.uint8)
    for field in fields_of(name):
        before = int(np.unpackbits(blocks).sum())
        write(blocks, field, np.full_like(read(blocks, field), -1))
        bits = sum(plane.bits * len(plane.items) for plane in field)
        assert int(np.unpackbits(blocks).sum()) == before + bits  # no bit belongs to two fields
    assert (blocks == 0xFF).all()


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=20)
@given(data=st.data())
def test_read_returns_what_write_wrote(name: str, data: st.DataObject) -> None:
    size = TYPE[TYPE_ID[name]].block_bytes
    blocks = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), "u1")
    copy = blocks.reshape(1, -1).copy()
    for field in fields_of(name):
        codes = read(copy, field)
        write(copy, field, np.zeros_like(codes))
        assert not read(copy, field).any()
        write(copy, field, codes)
    assert (copy == blocks).all()


@pytest.mark.parametrize("name", CODEBOOKS)
def test_codewords_are_all_different(name: str) -> None:
    table = codewords(name)
    assert len(np.unique(table, axis=0)) == len(table)
    assert table.shape[1] == CODEBOOKS[name].vector


def test_encode_rows_changes_only_scales_for_independent_inputs() -> None:
    kind, blocks = TYPE_ID["q8_0"], factors(np.eye(COLUMNS))
    before = plain(kind, weights(), np.ones(COLUMNS))
    after = encode_rows(kind, weights(), before, blocks)
    assert (errors(kind, after, blocks) <= errors(kind, before, blocks)).all()


def test_factor_block_raises_the_damping_of_a_singular_covariance() -> None:
    rank_one = np.ones((COLUMNS, COLUMNS))
    block = factor_block(0, rank_one, 0.0)
    assert block.damping > 0
    assert np.isfinite(block.upper).all()
    kind = TYPE_ID["q3_K"]
    before = plain(kind, weights(), np.ones(COLUMNS))
    after = encode_rows(kind, weights(), before, [block])
    assert errors(kind, after, [block]).sum() < 0.1 * errors(kind, before, [block]).sum()


def test_encode_rows_without_inputs_changes_nothing() -> None:
    block = factor_block(0, np.zeros((COLUMNS, COLUMNS)), 0.02)
    kind = TYPE_ID["q4_K"]
    before = plain(kind, weights(), np.ones(COLUMNS))
    assert (encode_rows(kind, weights(), before, [block]) == before).all()


def test_factor_block_factors_the_damped_ordered_covariance() -> None:
    covariance = inputs(96)
    block = factor_block(0, covariance, 0.1)
    damped = covariance + 0.1 * covariance.diagonal().mean() * np.eye(96)
    ordered = damped[np.ix_(block.order, block.order)]
    np.testing.assert_allclose(block.upper @ block.upper.T, ordered, rtol=1e-4, atol=1e-4)
    assert (np.tril(block.upper, -1) == 0).all()
    spans = covariance.diagonal()[block.order].reshape(-1, 32).sum(1)
    assert (np.diff(spans) <= 0).all()


def test_supports_refuses_types_without_codes() -> None:
    assert supports(TYPE_ID["q4_K"])
    assert not supports(TYPE_ID["f16"])
