"""Divergence from a reference model, token by token: what a level changes in the probabilities.

Definitions: kl_divergence() of tools/perplexity (llama.cpp 0c1e57098). For every scored token, with
p the reference's and q the model's distribution: KLD = Σ p (ln p − ln q) over ln p > −16; same top
says whether both find the same token likeliest.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_engine.llama.context import Logits
from minitron_quant.kernels.score import ReferenceRows, compared_rows, reference_rows
from minitron_quant.perplexity.perplexity import row_blocks, row_products, row_sums

_LEAST_LOG_PROBABILITY = -16.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ReferenceChunk:
    """What is needed of a reference's predictions of one chunk.

    p: [rows, n_vocab] float32, zero where ln p ≤ −16. log: Σ p ln p of each row, total: Σ p, top:
    the likeliest token, nll: −ln p of the true token.
    """

    p: NDArray[np.float32]
    log: Array
    total: Array
    top: NDArray[np.int64]
    nll: Array


@dataclass(frozen=True)
class TokenScores:
    """One model's scored tokens of a chunk, one value each: −ln p of the true token, and compared
    with a reference KLD and same top; these two are empty without a reference.
    """

    nll: Array
    kld: Array
    same_top: NDArray[np.bool_]

    @classmethod
    def of_nll(cls, nll: Array) -> "TokenScores":
        """Scores without a reference."""
        return cls(nll, np.empty(0), np.empty(0, np.bool_))


def reference_chunk(
    pool: ThreadPoolExecutor,
    logits: Logits,
    targets: NDArray[np.int32],
    space: NDArray[np.float32] | None = None,
) -> ReferenceChunk:
    """Keep what is needed of the reference's logits, [rows, n_vocab], of one chunk.

    space: memory of that shape for p; new memory takes the system longer than to compute p.
    """
    p = np.empty(logits.shape, dtype=np.float32) if space is None else space

    def work(rows: slice) -> tuple[Array, Array, NDArray[np.int64], Array]:
        return _reference_block(logits[rows], targets[rows], p[rows])

    parts = list(pool.map(work, row_blocks(logits)))
    log, total, top, nll = (np.concatenate(column) for column in zip(*parts, strict=True))
    return ReferenceChunk(p, log, total, top, nll)


def _reference_block(
    logits: Logits, targets: NDArray[np.int32], p: NDArray[np.float32]
) -> tuple[Array, Array, NDArray[np.int64], Array]:
    scored = reference_rows(logits, targets, p)
    if scored is not None:
        made, nll, top = scored
        return made.log, made.total, top, nll
    shifted, top = _below_the_top(logits)
    np.exp(shifted, out=p)
    sums = row_sums(p)
    log_sum = np.log(sums)
    p *= (1 / sums).astype(np.float32)[:, None]
    least = (log_sum + _LEAST_LOG_PROBABILITY).astype(np.float32)
    p *= shifted > least[:, None]
    total = row_sums(p)
    nll = log_sum - shifted[np.arange(len(targets)), targets].astype(np.float64)
    return row_products(p, shifted) - log_sum * total, total, top, nll


def _below_the_top(logits: Logits) -> tuple[Logits, NDArray[np.int64]]:
    """Each row's logits less its largest, and where that is."""
    top = logits.argmax(axis=1)
    return logits - logits[np.arange(len(top)), top][:, None], top


def compare_chunk(
    pool: ThreadPoolExecutor, logits: Logits, targets: NDArray[np.int32], base: ReferenceChunk
) -> TokenScores:
    """Score a model's logits, [rows, n_vocab], of a chunk against the reference's."""

    def work(rows: slice) -> tuple[Array, Array, NDArray[np.bool_]]:
        reference = ReferenceRows(base.p[rows], base.log[rows], base.total[rows])
        scored = compared_rows(logits[rows], targets[rows], reference)
        if scored is not None:
            return scored[0], scored[1], scored[2] == base.top[rows]
        shifted, top = _below_the_top(logits[rows])
        cross = row_products(base.p[rows], shifted)
        chosen = shifted[np.arange(len(top)), targets[rows]].astype(np.float64)
        np.exp(shifted, out=shifted)
        log_sum = np.log(row_sums(shifted))
        kld = base.log[rows] - cross + log_sum * base.total[rows]
        return log_sum - chosen, kld, top == base.top[rows]

    parts = list(pool.map(work, row_blocks(logits)))
    nll, kld, same = (np.concatenate(column) for column in zip(*parts, strict=True))
    return TokenScores(nll, kld, same.astype(np.bool_))
