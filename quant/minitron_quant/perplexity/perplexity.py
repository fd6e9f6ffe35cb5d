"""Perplexity, exactly as llama-perplexity defines it.

Source: perplexity() of tools/perplexity (llama.cpp 0c1e57098). The second half of every chunk is
scored: positions n_ctx/2 … n_ctx−2 predict the tokens after them. PPL = exp(mean nll); its error is
PPL · sqrt((mean nll² − (mean nll)²) / (n − 1)).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import MinitronError
from minitron_quant.kernels.score import negative_log_likelihoods

if TYPE_CHECKING:
    from minitron_engine.llama.context import Logits

# logits that a thread works on at once: with fewer the calls cost more, more leave its cache
_BLOCK_LOGITS = 1 << 19
# as many float32 values are added up before float64 takes over
_RUN = 4096
# exp of more overflows float64
_LARGEST_NLL = 700.0


def summarize(nll: NDArray[np.float64]) -> tuple[float, float]:
    """PPL and its standard error from the negative log-likelihoods of the scored tokens."""
    mean = float(nll.mean())
    if not mean < _LARGEST_NLL:
        raise MinitronError("the model gives no finite probabilities: its weights are broken")
    variance = float((nll * nll).mean()) - mean * mean
    ppl = math.exp(mean)
    error = ppl * math.sqrt(variance / (len(nll) - 1)) if variance > 0 else 0.0
    return ppl, error


def chunk_means(chunks: Iterable[NDArray[np.float64]]) -> tuple[float, ...]:
    """One value per chunk: the mean over its scored tokens."""
    return tuple(float(chunk.mean()) for chunk in chunks)


def negative_log_likelihood(
    pool: ThreadPoolExecutor, logits: Logits, targets: NDArray[np.int32]
) -> NDArray[np.float64]:
    """−log softmax(logits)[target] of each row; logits [rows, n_vocab], the result [rows] float64.

    As llama.cpp: exponentials in float32 of the difference to the row's maximum.
    """

    def work(rows: slice) -> NDArray[np.float64]:
        scored = negative_log_likelihoods(logits[rows], targets[rows])
        return _negative_log_likelihood(logits[rows], targets[rows]) if scored is None else scored

    return np.concatenate(list(pool.map(work, row_blocks(logits))))


def _negative_log_likelihood(logits: Logits, targets: NDArray[np.int32]) -> NDArray[np.float64]:
    highest, log_sum = _normalize(logits)
    chosen = logits[np.arange(len(targets)), targets] - highest
    return log_sum - chosen.astype(np.float64)


def normalizers(
    pool: ThreadPoolExecutor, logits: Logits
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The maximum m of every row of [rows, n_vocab], and ln Σ exp(logit − m)."""
    parts = list(pool.map(lambda rows: _normalize(logits[rows]), row_blocks(logits)))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def row_blocks(logits: Logits) -> list[slice]:
    """Rows of [rows, n_vocab] in blocks whose temporaries stay in a thread's cache."""
    step = max(1, _BLOCK_LOGITS // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def _normalize(logits: Logits) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    highest = logits.max(axis=1)
    shifted = logits - highest[:, None]
    np.exp(shifted, out=shifted)
    return highest, np.log(row_sums(shifted))


def row_sums(values: Logits) -> NDArray[np.float64]:
    """The sum of each row of [rows, columns] float32: short runs in float32, these in float64."""
    return row_products(values, _ones(values.shape[1]))


@cache
def _ones(columns: int) -> Logits:
    # made once: it takes as long as adding up a row
    return np.ones((1, columns), np.float32)


def row_products(a: Logits, b: Logits) -> NDArray[np.float64]:
    """Σ a·b of each row, added up as row_sums does: several times faster than all in float64.

    Runs are so short that BLAS computes one in the calling thread.
    """
    whole = a.shape[1] // _RUN * _RUN

    def runs(x: Logits) -> Logits:
        return x[:, :whole].reshape(len(x), -1, _RUN)

    rest = np.vecdot(a[:, whole:], b[:, whole:])
    total: NDArray[np.float64] = np.vecdot(runs(a), runs(b)).sum(axis=1, dtype=np.float64) + rest
    return total
