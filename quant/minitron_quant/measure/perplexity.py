"""Perplexity, exactly as llama-perplexity defines it.

Source: perplexity() of tools/perplexity (llama.cpp 0c1e57098). The second half of every chunk is
scored: positions n_ctx/2 … n_ctx−2 predict the tokens after them. PPL = exp(mean nll); its error is
PPL · sqrt((mean nll² − (mean nll)²) / (n − 1)).
"""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_engine.context import Context, Logits, open_context
from minitron_engine.devices import default_threads
from minitron_engine.errors import MinitronError
from minitron_engine.model import Model, Tokens
from minitron_engine.progress import Event, Progress, ignore
from minitron_quant.chunks import ChunkSettings, decode_chunks

# logits whose exponentials a thread has in memory at once: as many as stay in its cache
_BLOCK_LOGITS = 1 << 15


@dataclass(frozen=True)
class Perplexity:
    """ppl ± error over `tokens` scored tokens; chunk_nll is the mean −ln p of each chunk's."""

    ppl: float
    error: float
    tokens: int
    chunk_nll: tuple[float, ...]

    @property
    def chunks(self) -> int:
        """How many chunks were scored."""
        return len(self.chunk_nll)

    @property
    def running(self) -> list[float]:
        """The perplexity after each chunk."""
        means = np.cumsum(self.chunk_nll) / np.arange(1, self.chunks + 1)
        return [math.exp(mean) for mean in means]


def measure_perplexity(
    model: Model, chunks: Tokens, settings: ChunkSettings, progress: Progress = ignore
) -> Perplexity:
    """Run the chunks, [chunks, n_ctx] tokens, through the model and score them."""
    scores: list[NDArray[np.float64]] = []
    total = 0.0
    with open_context(model, settings.context()) as context:
        for nll in score_chunks(context, chunks, settings):
            scores.append(nll)
            total += float(nll.mean())
            detail = f"PPL {math.exp(total / len(scores)):.4f}"
            progress(Event("perplexity", len(scores), len(chunks), "chunks", detail))
    ppl, error = summarize(np.concatenate(scores))
    return Perplexity(ppl, error, sum(map(len, scores)), chunk_means(scores))


def chunk_means(chunks: Iterable[NDArray[np.float64]]) -> tuple[float, ...]:
    """One value per chunk: the mean over its scored tokens."""
    return tuple(float(chunk.mean()) for chunk in chunks)


def summarize(nll: NDArray[np.float64]) -> tuple[float, float]:
    """PPL and its standard error from the negative log-likelihoods of the scored tokens."""
    mean = float(nll.mean())
    if not math.isfinite(mean):
        raise MinitronError("the model gives no finite probabilities: its weights are broken")
    variance = float((nll * nll).mean()) - mean * mean
    ppl = math.exp(mean)
    error = ppl * math.sqrt(variance / (len(nll) - 1)) if variance > 0 else 0.0
    return ppl, error


def score_chunks(
    context: Context, chunks: Tokens, settings: ChunkSettings
) -> Iterator[NDArray[np.float64]]:
    """The negative log-likelihoods of every chunk's scored tokens, in order."""
    first = settings.n_ctx // 2
    threads = settings.threads or default_threads()
    with ThreadPoolExecutor(threads, thread_name_prefix="score") as pool:
        for start, group in decode_chunks(context, chunks, settings, first):
            for number, logits in enumerate(group):
                targets = chunks[start + number][first + 1 :]
                yield negative_log_likelihood(pool, logits[:-1], targets)


def negative_log_likelihood(
    pool: ThreadPoolExecutor, logits: Logits, targets: NDArray[np.int32]
) -> NDArray[np.float64]:
    """−log softmax(logits)[target] of each row; logits [rows, n_vocab], the result [rows] float64.

    As llama.cpp: exponentials in float32 of the difference to the row's maximum, summed in float64.
    """
    blocks = [(logits[rows], targets[rows]) for rows in row_blocks(logits)]
    return np.concatenate(list(pool.map(lambda block: _score_block(*block), blocks)))


def row_blocks(logits: Logits) -> list[slice]:
    """Rows of [rows, n_vocab] in blocks whose temporaries stay in a thread's cache."""
    step = max(1, _BLOCK_LOGITS // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def _score_block(logits: Logits, targets: NDArray[np.int32]) -> NDArray[np.float64]:
    highest = logits.max(axis=1)
    shifted = logits - highest[:, None]
    chosen = shifted[np.arange(len(targets)), targets].astype(np.float64)
    np.exp(shifted, out=shifted)
    result: NDArray[np.float64] = np.log(shifted.sum(axis=1, dtype=np.float64)) - chosen
    return result
