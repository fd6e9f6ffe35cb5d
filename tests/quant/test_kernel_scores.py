"""Rows of logits scored by the kernels: what numpy computes, in one read, with the same bits."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.kernels import built_library
from minitron_core.kernels import AVX2, Kernels
from minitron_quant.kernels import score
from minitron_quant.kernels.score import (
    ReferenceRows,
    compared_rows,
    negative_log_likelihoods,
    reference_rows,
)

Logits = NDArray[np.float32]


@pytest.fixture(autouse=True)
def in_use(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use(monkeypatch, built_library().loaded)
    yield
    score._usable.cache_clear()


def use(monkeypatch: pytest.MonkeyPatch, loaded: Kernels) -> None:
    monkeypatch.setattr(score, "kernels", lambda: loaded)
    score._usable.cache_clear()


def rows(seed: int, count: int, vocabulary: int, spread: float = 3) -> tuple[Logits, Any]:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal((count, vocabulary)) * spread).astype(np.float32)
    return logits, random.integers(0, vocabulary, count).astype(np.int32)


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    return score._log_softmax(logits.astype(np.float64))


def scored(
    logits: Logits, other: Logits, targets: NDArray[np.int32]
) -> tuple[ReferenceRows, list[NDArray[Any]]]:
    made = reference_rows(logits, targets, np.empty_like(logits))
    assert made is not None
    compared = compared_rows(other, targets, made[0])
    alone = negative_log_likelihoods(logits, targets)
    assert compared is not None and alone is not None
    return made[0], [made[0].p, made[0].log, made[0].total, *made[1:], *compared, alone]


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.sampled_from([0.1, 3, 40]))
def test_scores_are_those_of_the_definition(seed: int, vocabulary: int, spread: float) -> None:
    logits, targets = rows(seed, 4, vocabulary, spread)
    other, _ = rows(seed + 1, 4, vocabulary, spread)
    reference, (*_, nll, top, other_nll, kld, other_top, alone) = scored(logits, other, targets)
    p, q = log_softmax(logits), log_softmax(other)
    each = np.arange(4)
    # each term is rounded to float32 where logits are far apart
    close = {"rtol": 2e-6, "atol": 1e-5 * spread}
    np.testing.assert_allclose(nll, -p[each, targets], **close)
    np.testing.assert_allclose(other_nll, -q[each, targets], **close)
    counted = reference.p > 0
    assert (counted == (p > -16))[np.abs(p + 16) > 1e-4].all()
    np.testing.assert_allclose(reference.p, np.where(counted, np.exp(p), 0), rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(
        kld, np.where(counted, np.exp(p) * (p - q), 0).sum(axis=1), rtol=2e-5, atol=1e-5 * spread
    )
    assert (top == logits.argmax(axis=1)).all() and (other_top == other.argmax(axis=1)).all()
    assert np.array_equal(nll, alone)


@pytest.mark.parametrize("vocabulary", [1, 5, 16, 17, 1003, 4096])
def test_scores_are_the_same_bits_on_every_processor(
    vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (logits, targets), (other, _) = rows(1, 5, vocabulary), rows(2, 5, vocabulary)
    _, widest = scored(logits, other, targets)
    use(monkeypatch, Kernels(built_library().library, AVX2, ""))
    _, narrow = scored(logits, other, targets)
    for one, two in zip(widest, narrow, strict=True):
        assert np.array_equal(one, two)


def test_the_first_of_equal_logits_is_the_top() -> None:
    logits = np.zeros((2, 100), np.float32)
    logits[1, [40, 77]] = 2
    made = reference_rows(logits, np.zeros(2, np.int32), np.empty_like(logits))
    assert made is not None and made[2].tolist() == [0, 40]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_give_no_finite_score(bad: float) -> None:
    logits, targets = rows(3, 2, 300)
    logits[1, 123] = bad
    nll = negative_log_likelihoods(logits, targets)
    assert nll is not None and np.isfinite(nll[0]) and not np.isfinite(nll[1])


def test_what_the_kernels_cannot_read_is_left_to_numpy() -> None:
    logits, targets = rows(4, 4, 64)
    assert negative_log_likelihoods(logits[:, ::2], targets) is None
    assert negative_log_likelihoods(logits.astype(np.float64), targets) is None  # type: ignore[arg-type]
    assert negative_log_likelihoods(logits, targets + 64) is None
    assert negative_log_likelihoods(logits, targets - 64) is None
    assert negative_log_likelihoods(logits, targets) is not None


def test_without_kernels_numpy_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Kernels(None, 0, "none"))
    assert negative_log_likelihoods(*rows(5, 2, 64)) is None


def test_kernels_that_score_wrong_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = SimpleNamespace(kernels_score=lambda *_: 0)
    use(monkeypatch, Kernels(cast("Any", broken), AVX2, ""))
    with caplog.at_level(logging.WARNING, "minitron.kernels"):
        assert negative_log_likelihoods(*rows(6, 2, 64)) is None
        assert negative_log_likelihoods(*rows(6, 2, 64)) is None
    assert len(caplog.records) == 1
