"""Files measured on held-out text beside a baseline, and what is stored of it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from helpers.support import beginning, quantize
from minitron_core.errors import Usage
from minitron_core.hashing import file_sha256
from minitron_quant.chunking import ChunkSettings
from minitron_quant.perplexity.held_out import (
    KldComparison,
    compare_kld,
    measure_divergence,
    read_stored,
    refuse_calibration_text,
)
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.paired import Difference
from minitron_quant.perplexity.settings import MeasureSettings

COMPARISON = KldComparison(0.3, 0.4, Difference(-0.1, -0.2, 0.04))


def row(*chunk_kld: float) -> Row:
    values = "a.gguf", "Q4_0", 1.0, 9.0, 100.0, 100.0, 0.1, len(chunk_kld), "CPU"
    return Row(*values, chunk_kld=chunk_kld)


def test_kld_comparison_in_percent_of_the_baseline() -> None:
    assert COMPARISON.better and COMPARISON.change_pct == pytest.approx(-25)
    assert COMPARISON.interval_pct == pytest.approx((-50, 10))


def test_compare_kld_pairs_the_chunks() -> None:
    found = compare_kld(row(0.5, 2.5, 1.5), row(0.6, 2.6, 1.6))
    assert (found.kld, found.baseline_kld) == pytest.approx((1.5, 1.6))
    # the chunks differ by more than 0.1, each pair by exactly that
    assert (found.difference.low, found.difference.high) == pytest.approx((-0.1, -0.1))
    assert not compare_kld(row(0.6), row(0.6)).better


def test_measure_divergence_gives_the_files_in_order(short_llama: Path, tmp_path: Path) -> None:
    made = quantize(short_llama, tmp_path, "Q8_0", "Q4_0")
    files = [made[level].path for level in ("Q4_0", "Q8_0")]
    chunks = ChunkSettings(n_ctx=64, n_batch=128, limit=4)
    settings = MeasureSettings((), beginning(tmp_path, 8000), chunks, reference=short_llama)
    coarse, fine = measure_divergence(settings, files)
    assert [coarse.model, fine.model] == [path.name for path in files]
    assert compare_kld(fine, coarse).better and compare_kld(fine, coarse).change_pct > -100


def test_refuse_calibration_text_goes_by_content(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("calibration")
    other.write_text("held out")
    calibration = [file_sha256(text)]
    refuse_calibration_text(other, calibration, "hint")
    other.write_text("calibration")
    with pytest.raises(Usage, match="other is the calibration text itself"):
        refuse_calibration_text(other, calibration, "hint")


@pytest.mark.parametrize("damaged", ["", "[1]", "{}", '{"kld": 1, "difference": 2}', "[" * 100000])
def test_read_stored_gives_none_for_what_is_damaged(damaged: str, tmp_path: Path) -> None:
    path = tmp_path / "stored.json"
    assert read_stored(path, KldComparison.from_document) is None
    path.write_text(damaged)
    assert read_stored(path, KldComparison.from_document) is None
    document: dict[str, Any] = asdict(COMPARISON)
    path.write_text(json.dumps(document))
    assert read_stored(path, KldComparison.from_document) == COMPARISON
