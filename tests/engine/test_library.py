"""The functions that the binding lacks."""

from pathlib import Path

import numpy as np
import pytest

from minitron_engine.llama import devices, library


@pytest.mark.parametrize("type_id", [1, 30])
def test_halves_are_decoded_alike_by_both_libraries(
    type_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(functions: object) -> object:
        raise AttributeError("ggml_cpu_init")

    halves = np.arange(1 << 16, dtype=np.uint16)
    results = []
    library.ggml()
    fast = library._half_decoders()
    with monkeypatch.context() as patch:
        patch.setattr(library, "_declared", absent)
        plain = library._half_decoders.__wrapped__()
    for function in (fast[type_id], plain[type_id]):
        values = np.empty(halves.size, np.float32)
        function(halves.ctypes.data, values.ctypes.data, halves.size)
        results.append(values)
    np.testing.assert_array_equal(*results)
    if type_id == 1:
        np.testing.assert_array_equal(results[0], halves.view(np.float16).astype(np.float32))
    else:
        expected = (halves.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(results[0], expected)


def test_every_library_is_loaded_once() -> None:
    devices.devices()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("there is no list of loaded libraries")
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "/libggml" in line}
    names = [Path(path).name.partition(".")[0] for path in paths]
    assert "libggml-base" in names
    assert len(names) == len(set(names)), paths
