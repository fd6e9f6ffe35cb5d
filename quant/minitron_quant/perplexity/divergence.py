"""Divergence from a reference model: what a level changes in the predicted probabilities.

Definitions: kl_divergence() of tools/perplexity (llama.cpp 0c1e57098). For every scored token, with
p the reference's and q the model's distribution: KLD = Σ p (ln p − ln q) over ln p > −16; Δp is the
change of the true token's probability; same top says whether both find the same token likeliest.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_engine.llama.context import Logits
from minitron_quant.perplexity.perplexity import row_blocks, row_products, row_sums, summarize

_LEAST_LOG_PROBABILITY = -16.0
_MIN_TOKENS = 100  # llama-perplexity prints no statistics of fewer

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
    """One model's scored tokens of a chunk, one value each: −ln p of the true token, and beside the
    reference KLD and same top; these two are empty where nothing was compared.
    """

    nll: Array
    kld: Array
    same_top: NDArray[np.bool_]

    @classmethod
    def alone(cls, nll: Array) -> "TokenScores":
        """Scores that were compared with nothing."""
        return cls(nll, np.empty(0), np.empty(0, np.bool_))


@dataclass(frozen=True)
class Divergence:
    """Statistics over all scored tokens, named as the keys of the JSON contract; pct is percent."""

    ppl: float
    ppl_error: float
    ppl_ratio: float
    ppl_ratio_error: float
    ln_ppl_correlation_pct: float
    kld_mean: float
    kld_error: float
    kld_max: float
    kld_p999: float
    kld_p99: float
    kld_p95: float
    kld_p90: float
    kld_median: float
    kld_p10: float
    kld_p05: float
    kld_p01: float
    kld_min: float
    delta_p_mean_pct: float
    delta_p_error_pct: float
    rms_delta_p_pct: float
    rms_delta_p_error_pct: float
    same_top_pct: float
    same_top_error: float


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


def statistics(chunks: Sequence[TokenScores], reference: Sequence[Array]) -> Divergence | None:
    """Everything that llama-perplexity prints of a divergence; None for fewer than 100 tokens.

    reference: −ln p of the same tokens by the reference, chunk by chunk.
    """
    nll, kld, same = (
        np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("nll", "kld", "same_top")
    )
    base = np.concatenate(reference)
    delta = np.exp(-nll) - np.exp(-base)
    if len(nll) < _MIN_TOKENS:
        return None
    ppl, ppl_error = summarize(nll)
    (mean, error), (mean_base, error_base) = _mean(nll), _mean(base)
    covariance = float((nll * base).mean() - mean * mean_base) / (len(nll) - 1)
    ratio = math.exp(mean - mean_base)
    spread = math.sqrt(max(error**2 + error_base**2 - 2 * covariance, 0.0))
    square, square_error = _mean(delta**2)
    rms = math.sqrt(square)
    top = float(same.mean())
    kld_mean, kld_error = _mean(kld)
    delta_mean, delta_error = _mean(delta)
    return Divergence(
        ppl=ppl,
        ppl_error=ppl_error,
        ppl_ratio=ratio,
        ppl_ratio_error=ratio * spread,
        ln_ppl_correlation_pct=100 * covariance / (error * error_base),
        kld_mean=kld_mean,
        kld_error=kld_error,
        kld_max=float(kld.max()),
        kld_p999=_percentile(kld, 99.9),
        kld_p99=_percentile(kld, 99),
        kld_p95=_percentile(kld, 95),
        kld_p90=_percentile(kld, 90),
        kld_median=_percentile(kld, 50),
        kld_p10=_percentile(kld, 10),
        kld_p05=_percentile(kld, 5),
        kld_p01=_percentile(kld, 1),
        kld_min=float(kld.min()),
        delta_p_mean_pct=100 * delta_mean,
        delta_p_error_pct=100 * delta_error,
        rms_delta_p_pct=100 * rms,
        rms_delta_p_error_pct=100 * 0.5 / rms * square_error if rms else 0.0,
        same_top_pct=100 * top,
        same_top_error=100 * math.sqrt(top * (1 - top) / (len(same) - 1)),
    )


def _mean(values: Array) -> tuple[float, float]:
    """A mean and its standard error: sqrt((mean of squares − mean²) / (n − 1))."""
    mean = float(values.mean())
    variance = float((values * values).mean()) - mean * mean
    return mean, math.sqrt(max(variance, 0.0) / (len(values) - 1))


def _percentile(values: Array, percent: float) -> float:
    return float(np.percentile(values, percent))
