"""Files of importance matrices: what was written is read, and damage is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from helpers.support import RECORDED
from minitron_core.errors import Damaged, MinitronError, NotFound
from minitron_quant.imatrix.files import read_imatrix, write_imatrix
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix
from minitron_quant.provenance import CalibrationOrigin

names = st.text(alphabet="abcdefgh.0123456789_", min_size=1, max_size=40)
counts = st.integers(1, 4)
sums = hnp.arrays(
    np.float32, st.tuples(counts, st.integers(1, 8)), elements=st.floats(0, 1e6, width=32)
)


@given(
    entries=st.dictionaries(names, sums, min_size=1, max_size=4),
    datasets=st.lists(st.text(max_size=20), max_size=3),
)
def test_read_imatrix_returns_what_was_written(
    entries: dict[str, np.ndarray], datasets: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    matrix = ImportanceMatrix(
        {
            n: Entry(s, np.arange(1, len(s) + 1), -s.astype(np.float64) if "a" in n else None)
            for n, s in entries.items()
        },
        datasets,
        7,
        512,
        CalibrationOrigin("model", tuple(datasets)) if len(datasets) != 1 else None,
    )
    path = tmp_path_factory.mktemp("imatrix") / "m.gguf"
    write_imatrix(path, matrix)
    back = read_imatrix(path)
    assert (back.datasets, back.chunk_count, back.chunk_size) == (datasets, 7, 512)
    assert back.origin == matrix.origin
    for name, entry in matrix.entries.items():
        np.testing.assert_array_equal(back.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(back.entries[name].counts, entry.counts)
        np.testing.assert_array_equal(back.entries[name].mean(), entry.mean())


@given(
    data=st.binary(max_size=200), prefix=st.sampled_from([b"", b"GGUF\x03\0\0\0", b"\x01\0\0\0"])
)
def test_read_imatrix_refuses_damaged_files(
    data: bytes, prefix: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("imatrix") / "broken"
    path.write_bytes(prefix + data)
    try:
        matrix = read_imatrix(path)
    except Exception as error:
        assert getattr(error, "exit_code", None) in (4, 8)
        assert str(error) and "\n" not in str(error)
    else:
        assert matrix.entries


def test_read_imatrix_refuses_truncated_files(tmp_path: Path) -> None:
    for name in ("nano-llama.imatrix.gguf", "nano-llama.imatrix.dat"):
        data = (RECORDED / name).read_bytes()
        cut = tmp_path / name
        cut.write_bytes(data[: len(data) // 2])
        with pytest.raises(Exception) as caught:
            read_imatrix(cut)
        assert getattr(caught.value, "exit_code", None) == Damaged.exit_code


def test_read_imatrix_hints_how_to_make_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        read_imatrix(tmp_path / "none.gguf")
    assert "minitron imatrix" in caught.value.hint


def test_weights_are_ones_for_experts_that_no_token_reached() -> None:
    matrix = ImportanceMatrix(
        {"w": Entry(np.array([[4.0, 8.0], [0.0, 0.0]], np.float32), np.array([2, 0]))}
    )
    np.testing.assert_array_equal(matrix.weights()["w"], [[2.0, 4.0], [1.0, 1.0]])


def test_read_imatrix_refuses_infinite_statistics(tmp_path: Path) -> None:
    sums = np.array([[1.0, np.inf]], np.float32)
    matrix = ImportanceMatrix({"w": Entry(sums, np.array([1]))}, ["t"], 1, 512)
    write_imatrix(tmp_path / "m.gguf", matrix)
    with pytest.raises(MinitronError, match="not finite"):
        read_imatrix(tmp_path / "m.gguf")
