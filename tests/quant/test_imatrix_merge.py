"""Merging and statistics of importance matrices, as llama-imatrix has them."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from helpers.support import RECORDED, recorded
from minitron_core.errors import Damaged, Usage
from minitron_quant.imatrix.files import read_imatrix, write_imatrix
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix
from minitron_quant.imatrix.merge import merge
from minitron_quant.imatrix.statistics import layer_statistics, weight_statistics
from minitron_quant.provenance import CalibrationOrigin

GGUF, DAT = RECORDED / "nano-llama.imatrix.gguf", RECORDED / "nano-llama.imatrix.dat"
FILES = recorded("imatrix-files.json")


@pytest.mark.parametrize("paths", [(GGUF, GGUF), (GGUF, DAT)], ids=["gguf", "dat"])
def test_merge_equals_llama_imatrix_to_the_byte(paths: tuple[Path, Path], tmp_path: Path) -> None:
    write_imatrix(tmp_path / "merged.gguf", merge(paths))
    expected = FILES["merged"][" ".join(path.name for path in paths)]
    assert hashlib.sha256((tmp_path / "merged.gguf").read_bytes()).hexdigest() == expected["sha256"]


def test_weight_statistics_equal_llama_imatrix() -> None:
    rows = {row.name: asdict(row) for row in weight_statistics(read_imatrix(GGUF))}
    assert rows.keys() == FILES["weights"].keys()
    for name, expected in FILES["weights"].items():
        for key, value in expected.items():
            # as many decimals as are printed; sums there are float32
            assert rows[name][key] == pytest.approx(value, rel=1e-4, abs=0.0051), (name, key)


def test_layer_statistics_equal_llama_imatrix() -> None:
    rows = layer_statistics(weight_statistics(read_imatrix(GGUF)))
    assert [str(row.layer) for row in rows] == list(FILES["layers"])
    for row in rows:
        expected = FILES["layers"][str(row.layer)]
        got = [row.total, row.z_pct, row.similarity]
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_merge_refuses_models_of_other_sizes(tmp_path: Path) -> None:
    paths = []
    for columns in (4, 8):
        entry = Entry(np.ones((1, columns), np.float32), np.array([3]))
        path = tmp_path / f"{columns}.gguf"
        write_imatrix(path, ImportanceMatrix({"blk.0.w.weight": entry}, ["t"], 1, 512))
        paths.append(path)
    with pytest.raises(Damaged, match="another size"):
        merge(paths)
    with pytest.raises(Usage, match="two files"):
        merge(paths[:1])


def test_weight_statistics_leave_out_experts_without_data() -> None:
    entry = Entry(np.array([[2.0, 4.0], [0.0, 0.0]], np.float32), np.array([2, 0]))
    (row,) = weight_statistics(ImportanceMatrix({"blk.0.ffn_up_exps.weight": entry}))
    assert (row.total, row.least, row.most, row.columns) == (3.0, 1.0, 2.0, 2)
    assert row.coverage_pct == 50


def test_merge_keeps_totals_and_origin_if_every_file_has_them(tmp_path: Path) -> None:
    paths = []
    for number, origin in enumerate(
        [CalibrationOrigin("m", ("a",)), CalibrationOrigin("m", ("b",)), None]
    ):
        sums, totals = np.full((1, 4), 2.0, np.float32), np.full((1, 4), -1.0)
        entry = Entry(sums, np.array([3]), totals if origin else None)
        paths.append(tmp_path / f"{number}.gguf")
        matrix = ImportanceMatrix({"blk.0.w.weight": entry}, ["t"], 1, 512, origin)
        write_imatrix(paths[-1], matrix)
    merged = merge(paths[:2])
    assert merged.origin == CalibrationOrigin("m", ("a", "b"))
    np.testing.assert_allclose(merged.entries["blk.0.w.weight"].mean(), np.full((1, 4), -1 / 3))
    merged = merge(paths)
    assert merged.origin is None and merged.entries["blk.0.w.weight"].mean() is None


def test_merge_refuses_files_of_different_models(tmp_path: Path) -> None:
    entry = Entry(np.ones((1, 4), np.float32), np.array([3]))
    paths = [tmp_path / "one.gguf", tmp_path / "two.gguf"]
    for path in paths:
        matrix = ImportanceMatrix(
            {"blk.0.w": entry}, ["t"], 1, 512, CalibrationOrigin(path.stem, ("t",))
        )
        write_imatrix(path, matrix)
    with pytest.raises(Damaged, match=r"two.gguf was made for another model than one.gguf"):
        merge(paths)
