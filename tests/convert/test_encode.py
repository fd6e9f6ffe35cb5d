"""Types of converted files, bit for bit against gguf-py's encoders."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minitron_convert.encode import decode, encode, to_bf16, to_float, to_q8_0
from minitron_core.gguf import BF16, F16, F32, Q8_0

BITS = np.arange(1 << 16, dtype=np.uint16)
EDGES = np.array(
    [0, 0x80000000, 1, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFBFFFFF, 0x3F808000],
    np.uint32,
)


def theirs(values: np.ndarray, kind: int) -> bytes:
    """gguf-py's bytes."""
    with np.errstate(all="ignore"):
        return bytes(gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind)).tobytes())


def test_encode_keeps_the_bits_of_every_bf16() -> None:
    values = to_float(BITS, "BF16")
    assert encode(BITS, "BF16", BF16).tobytes() == theirs(values.reshape(1, -1), BF16)
    assert encode(BITS, "BF16", F32).tobytes() == values.tobytes()
    assert encode(BITS, "BF16", F16).tobytes() == theirs(values, F16)


def test_encode_treats_every_f16_as_gguf_py() -> None:
    halves = BITS.view(np.float16)
    assert encode(halves, "F16", F16) is halves
    values = halves.astype(np.float32).reshape(1, -1)
    assert encode(halves.reshape(1, -1), "F16", BF16).tobytes() == theirs(values, BF16)


@given(hnp.arrays(np.uint32, 64, elements=st.integers(0, 2**32 - 1)))
def test_to_bf16_rounds_as_gguf_py(bits: np.ndarray) -> None:
    values = np.concatenate([bits, EDGES]).view(np.float32).reshape(1, -1)
    assert to_bf16(values).tobytes() == theirs(values, BF16)


@given(
    hnp.arrays(np.float32, 64, elements=st.floats(-1e6, 1e6, width=32)),
    st.integers(-100, 100),
)
def test_to_q8_0_rounds_as_gguf_py(values: np.ndarray, exponent: int) -> None:
    values = np.ldexp(values, exponent).reshape(2, 32).astype(np.float32)
    assert to_q8_0(values).tobytes() == theirs(values, Q8_0)


def test_to_q8_0_rounds_halves_away_from_zero() -> None:
    steps = np.arange(-127, 127.5, 0.5, dtype=np.float32)
    near = np.concatenate([steps, np.nextafter(steps, np.float32(0)), [127.0] * 3])
    rows = near.astype(np.float32)[: len(near) // 31 * 31].reshape(-1, 31)
    blocks = np.concatenate([rows, np.full((len(rows), 1), 127, np.float32)], axis=1)
    assert to_q8_0(blocks).tobytes() == theirs(blocks, Q8_0)
    assert to_q8_0(np.zeros((1, 32), np.float32)).tobytes() == bytes(34)


def test_decode_refuses_types_that_gguf_py_does_not_know() -> None:
    with pytest.raises(NotImplementedError):
        decode(np.zeros(16, np.uint8), 99)
