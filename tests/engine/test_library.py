"""The functions that the binding lacks."""

from pathlib import Path

import numpy as np
import pytest

from minitron_engine.llama import devices, library


@pytest.mark.parametrize("type_id", [1, 30])
def test_decode_of_halves_equals_both_libraries(type_id: int) -> None:
    base = library.ggml()
    slow = {1: base.ggml_fp16_to_fp32_row, 30: base.ggml_bf16_to_fp32_row}[type_id]
    halves = np.arange(1 << 16, dtype=np.uint16)
    decoded, expected = np.empty(halves.size, np.float32), np.empty(halves.size, np.float32)
    assert library.decode(type_id, halves.ctypes.data, decoded.ctypes.data, halves.size)
    slow(halves.ctypes.data, expected.ctypes.data, halves.size)
    np.testing.assert_array_equal(decoded, expected)
    numbers = {
        1: halves.view(np.float16).astype(np.float32),
        30: (halves.astype(np.uint32) << 16).view(np.float32),
    }
    np.testing.assert_array_equal(decoded, numbers[type_id])


def test_library_is_loaded_once() -> None:
    devices.devices()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("there is no list of loaded libraries")
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "/libggml" in line}
    names = [Path(path).name.partition(".")[0] for path in paths]
    assert "libggml-base" in names
    assert len(names) == len(set(names)), paths
