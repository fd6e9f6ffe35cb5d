"""The calls into ggml that encode, decode and validate blocks."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from minitron_core.errors import Unsupported
from minitron_core.gguf import F16, F32, TYPE_ID, row_bytes
from minitron_quant.blocks import are_valid, decode_blocks, encode_blocks

VALUES = np.random.default_rng(0).standard_normal((3, 512), np.float32)


@pytest.mark.parametrize("name", ["q4_0", "q8_0", "q6_K", "iq4_xs"])
def test_decode_blocks_equals_gguf_py(name: str) -> None:
    ggml_type = TYPE_ID[name]
    data = encode_blocks(ggml_type, VALUES)
    assert data.size == 3 * row_bytes(ggml_type, 512) and are_valid(ggml_type, data)
    theirs = dequantize(data.reshape(3, -1), GGMLQuantizationType[name.upper()])
    np.testing.assert_array_equal(decode_blocks(ggml_type, data, VALUES.shape), theirs)


def test_encode_blocks_writes_to_its_place_and_follows_the_importance() -> None:
    ggml_type = TYPE_ID["q4_0"]
    place = np.zeros(3 * row_bytes(ggml_type, 512), np.uint8)
    assert encode_blocks(ggml_type, VALUES, out=place) is place
    np.testing.assert_array_equal(place, encode_blocks(ggml_type, VALUES))
    importance = np.geomspace(1e-3, 1e3, 512, dtype=np.float32)
    assert (encode_blocks(ggml_type, VALUES, importance) != place).any()


def test_decode_blocks_of_float32_is_a_view() -> None:
    data = VALUES.view(np.uint8).reshape(-1)
    assert np.shares_memory(decode_blocks(F32, data, VALUES.shape), VALUES)


def test_decode_blocks_refuses_types_without_decoder() -> None:
    with pytest.raises(Unsupported, match="ggml cannot decode i8"):
        decode_blocks(TYPE_ID["i8"], np.zeros(32, np.uint8), (32,))


def test_are_valid_notices_values_that_are_not_finite() -> None:
    halves = np.ones(64, np.float16)
    assert are_valid(F16, halves.view(np.uint8))
    halves[7] = np.inf
    assert not are_valid(F16, halves.view(np.uint8))
