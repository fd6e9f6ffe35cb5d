"""Rows of logits scored by the kernels, which read a row once: −ln p, the top token, KLD.

Every function returns None where there are no kernels: numpy has to do it. The numbers differ from
numpy's in the seventh digit, and are the same bits whatever the instruction set and the threads.
"""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_core.kernels import Kernels, kernels

Logits = NDArray[np.float32]
Array = NDArray[np.float64]
Tokens = NDArray[np.int64]
_LOG = logging.getLogger("minitron.kernels")


@dataclass(frozen=True)
class ReferenceRows:
    """What is needed of a reference's rows: p [rows, vocabulary] float32, zero where ln p ≤ −16,
    log = Σ p ln p and total = Σ p [rows].
    """

    p: Logits
    log: Array
    total: Array


def negative_log_likelihoods(logits: Logits, targets: NDArray[np.int32]) -> Array | None:
    """−ln p of the target of each row [rows, vocabulary]."""
    scored = _scored(logits, targets)
    return scored and scored[0]


def reference_rows(
    logits: Logits, targets: NDArray[np.int32], p: Logits
) -> tuple[ReferenceRows, Array, Tokens] | None:
    """Fill `p` [rows, vocabulary]; returns the rows, −ln p of the targets and the top tokens."""
    rows = ReferenceRows(p, np.empty(len(logits)), np.empty(len(logits)))
    scored = _scored(logits, targets, rows)
    return scored and (rows, *scored)


def compared_rows(
    logits: Logits, targets: NDArray[np.int32], reference: ReferenceRows
) -> tuple[Array, Array, Tokens] | None:
    """−ln p of the targets, KLD from the reference, and the top tokens, of each row."""
    kld = np.empty(len(logits))
    scored = _scored(logits, targets, reference, kld)
    return scored and (scored[0], kld, scored[1])


def _scored(logits: Logits, targets: NDArray[np.int32], *more: Any) -> tuple[Array, Tokens] | None:
    loaded = kernels()
    return _by_kernels(loaded, logits, targets, *more) if _usable() else None


def _by_kernels(
    loaded: Kernels,
    logits: Logits,
    targets: NDArray[np.int32],
    reference: ReferenceRows | None = None,
    kld: Array | None = None,
) -> tuple[Array, Tokens] | None:
    rows, vocabulary = logits.shape
    arrays = [
        logits,
        targets,
        *((reference.p, reference.log, reference.total) if reference else ()),
    ]
    usable = all(array.flags.c_contiguous for array in arrays) and logits.dtype == np.float32
    if not (usable and targets.dtype == np.int32 and _within(targets, vocabulary)):
        return None
    assert loaded.library is not None
    nll, top = np.empty(rows), np.empty(rows, np.int64)
    parts = (reference.p, reference.log, reference.total) if reference else (None, None, None)
    failed = loaded.library.kernels_score(
        loaded.level,
        logits.ctypes.data,
        rows,
        vocabulary,
        targets.ctypes.data,
        *(None if array is None else array.ctypes.data for array in (nll, top, *parts, kld)),
    )
    return None if failed else (nll, top)


def _within(targets: NDArray[np.int32], vocabulary: int) -> bool:
    return not len(targets) or bool(targets.min() >= 0 and targets.max() < vocabulary)


@cache
def _usable() -> bool:
    """Whether there are kernels, and they give what the definitions in float64 give."""
    loaded = kernels()
    if loaded.library is None:
        return False
    place = np.arange(3 * 1003, dtype=np.int64).reshape(3, 1003)
    logits = (place * 7919 % 4001 / np.float32(200)).astype(np.float32)
    other = (place * 104729 % 3989 / np.float32(190)).astype(np.float32)
    targets = np.array([1, 500, 1002], np.int32)
    rows = ReferenceRows(np.empty_like(logits), np.empty(3), np.empty(3))
    kld = np.empty(3)
    _by_kernels(loaded, logits, targets, rows)
    scored = _by_kernels(loaded, other, targets, rows, kld)
    if scored is not None and _is_right(logits, other, targets, rows.p, scored[0], kld):
        return True
    _LOG.warning("the scoring kernels are wrong on this processor, so numpy scores")
    return False


def _is_right(
    logits: Logits, other: Logits, targets: NDArray[np.int32], p: Logits, nll: Array, kld: Array
) -> bool:
    base, model = (_log_softmax(values.astype(np.float64)) for values in (logits, other))
    counted = np.where(base > -16, np.exp(base), 0)
    divergence = (counted * np.where(counted > 0, base - model, 0)).sum(axis=1)
    pairs = (p, counted), (nll, -model[np.arange(3), targets]), (kld, divergence)
    return all(np.allclose(ours, right, rtol=1e-5, atol=1e-6) for ours, right in pairs)


def _log_softmax(values: Array) -> Array:
    shifted = values - values.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
