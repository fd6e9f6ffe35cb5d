"""Paired differences between models: the interval covers the truth, and pairing narrows it."""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from helpers.support import beginning
from minitron_quant.chunking import ChunkSettings
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.paired import (
    all_pairs,
    compare_pairs,
    nearest_pairs,
    paired_difference,
    paired_differences,
)
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import measure
from minitron_quant.quantize.run import LevelResult


def test_paired_difference_constant_has_no_spread() -> None:
    chunks = np.random.default_rng(0).normal(4, 1, 50)
    difference = paired_difference(chunks + 0.01, chunks)
    assert difference.mean == pytest.approx(0.01)
    assert difference.low == pytest.approx(0.01) and difference.high == pytest.approx(0.01)
    assert difference.exp().mean == pytest.approx(math.exp(0.01))


def test_paired_difference_interval_covers_truth() -> None:
    random = np.random.default_rng(1)
    trials = 300
    hard = random.normal(4, 1, (trials, 60))  # what both models share
    a, b = (hard + random.normal(shift, 0.05, hard.shape) for shift in (0.01, 0.0))
    found = [paired_difference(x, y, resamples=500) for x, y in zip(a, b, strict=True)]
    covered = np.mean([each.low <= 0.01 <= each.high for each in found])
    assert 0.90 < covered < 0.985


def test_paired_differences_equal_one_by_one() -> None:
    a, b = np.random.default_rng(2).normal(0, 1, (2, 3, 40))
    together = paired_differences(a - b, seed=7)
    for x, y, both in zip(a, b, together, strict=True):
        alone = paired_difference(x, y, seed=7)
        assert alone.low == pytest.approx(both.low) and alone.high == pytest.approx(both.high)
    assert paired_difference(a[0], b[0], seed=8).low != together[0].low


def test_paired_difference_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="shapes"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="chunks"):
        paired_difference([], [])


def test_compare_pairs_of_all_levels_of_a_model(
    nano_llama: Path, llama_levels: dict[str, LevelResult], tmp_path: Path
) -> None:
    paths = tuple(llama_levels[level].path for level in ("Q8_0", "Q2_K", "IQ1_S"))
    settings = MeasureSettings(
        paths,
        beginning(tmp_path),
        ChunkSettings(n_ctx=128, limit=12),
        reference=nano_llama,
    )
    rows = list(measure(settings))
    found = compare_pairs(all_pairs(rows))
    pairs = list(combinations(rows, 2))
    assert [(each.a, each.b) for each in found] == [(a.model, b.model) for a, b in pairs]
    for each, (a, b) in zip(found, pairs, strict=True):
        assert each.ppl_ratio == pytest.approx(a.ppl / b.ppl)
        assert (each.kld_difference is None) == (a is rows[0])
        if a.divergence and b.divergence:
            expected = a.divergence.kld_mean - b.divergence.kld_mean
            assert each.kld_difference == pytest.approx(expected, abs=1e-12)
    # two levels far apart differ for certain, in perplexity and in divergence
    last = found[-1]
    assert last.kld_difference_high is not None and last.kld_difference_high < 0
    assert last.ppl_ratio_high < 1
    assert compare_pairs(all_pairs(rows[:1])) == []


def test_nearest_pairs_are_the_reference_and_the_next_in_size() -> None:
    rows = [
        Row(name, "", size, 5.0, None, None, 0.1, 2, "CPU")
        for name, size in (("full", 9.0), ("small", 1.0), ("large", 3.0))
    ]
    near = [(a.model, b.model) for a, b in nearest_pairs(rows, rows[0])]
    assert near == [("small", "large"), ("small", "full"), ("large", "full")]
    assert [(a.model, b.model) for a, b in nearest_pairs(rows[1:], None)] == [("small", "large")]
