"""Likelihoods of continuations: many in one decode, and only scored rows have logits."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_core.cpu_limits import default_threads
from minitron_core.errors import MinitronError
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import MAX_SEQUENCES, Context, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings
from minitron_quant.perplexity.perplexity import normalizers
from minitron_quant.tasks.prefix_sharing import CacheLayout, group_by_prefix, lay_out_group
from minitron_quant.tasks.question import Continuation

# the memory that the logits of one decode may take; llama.cpp computes them in as much again
_LOGITS_BYTES = 128 << 20

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreSettings:
    """At most n_batch tokens are decoded at once, and the cache holds as many and the longest text.

    On a CPU a large batch gains nothing: every token attends over the whole cache.
    """

    n_batch: int = 512
    threads: int | None = None


@dataclass(frozen=True)
class Likelihood:
    """ln p of every scored token, and whether each was the likeliest of all."""

    log_p: Array
    greedy: bool


def likelihoods(
    model: Model, items: Sequence[Continuation], settings: ScoreSettings
) -> Iterator[Likelihood]:
    """Score continuations, in order, as they are done. Each has a token before its first scored."""
    if not items:
        return
    capacity = settings.n_batch + max(len(item.inputs) for item in items)
    n_outputs = min(settings.n_batch, max(2, _LOGITS_BYTES // (4 * model.n_vocab)))
    threads = settings.threads or default_threads()
    context_settings = ContextSettings(
        n_ctx=capacity,
        n_batch=settings.n_batch,
        n_seq=min(MAX_SEQUENCES, n_outputs),
        unified=True,
        n_outputs=n_outputs,
        threads=threads,
    )
    # sequence 0 of the cache holds what a group reuses of the one before
    sequences = context_settings.n_seq - 1
    with (
        open_context(model, context_settings) as context,
        ThreadPoolExecutor(threads, thread_name_prefix="score") as pool,
    ):
        scorer = _Scorer(context, pool, context_settings)
        for part in group_by_prefix(items, capacity, sequences):
            members = items[part.first : part.first + len(part.shared)]
            yield from scorer.score(members, lay_out_group(members, part.shared))


class _Scorer:
    def __init__(
        self, context: Context, pool: ThreadPoolExecutor, settings: ContextSettings
    ) -> None:
        self._context = context
        self._pool = pool
        self._batch = Batch(settings.n_batch)
        self._rows = settings.n_outputs or settings.n_batch
        self._last = 0

    def score(self, items: Sequence[Continuation], layout: CacheLayout) -> list[Likelihood]:
        self._reuse_cache(layout)
        cells = [layout.cells[n][item.start - 1 - layout.kept[n] :] for n, item in enumerate(items)]
        targets = np.concatenate([item.tokens[item.start :] for item in items])
        log_p, greedy = self._decode(layout, np.concatenate(cells), targets)
        if not np.isfinite(log_p).all():
            raise MinitronError("the model gives no finite probabilities: its weights are broken")
        ends = np.cumsum([len(rows) for rows in cells])[:-1]
        parts = zip(np.split(log_p, ends), np.split(greedy, ends), strict=True)
        return [Likelihood(values, bool(best.all())) for values, best in parts]

    def _reuse_cache(self, layout: CacheLayout) -> None:
        # the cache keeps what the first sequence has in common with the last of the group before
        if layout.kept[0]:
            self._context.keep(self._last, layout.kept[0])
            for number, length in enumerate(layout.kept, 1):
                if length:
                    self._context.share(number, length)
        else:
            self._context.clear()
        self._last = len(layout.kept)

    def _decode(
        self, layout: CacheLayout, cells: NDArray[np.int64], targets: NDArray[np.int32]
    ) -> tuple[Array, NDArray[np.bool_]]:
        """ln p of targets, and whether each is the likeliest, after the entries `cells`."""
        output = np.zeros(len(layout.token), dtype=np.bool_)
        output[cells] = True
        log_p = np.empty(len(cells))
        greedy = np.empty(len(cells), dtype=np.bool_)
        for part in self._steps(output):
            self._batch.clear()
            self._batch.add_shared(
                layout.token[part],
                layout.position[part],
                layout.sequence[part],
                layout.sharers[part],
                output[part],
            )
            self._context.decode(self._batch)
            here = np.flatnonzero((cells >= part.start) & (cells < part.stop))
            if not len(here):
                continue
            logits = self._context.logits(self._batch.outputs)
            row_of = np.cumsum(output[part]) - 1
            rows = row_of[cells[here] - part.start]
            highest, log_sum = normalizers(self._pool, logits)
            chosen = logits[rows, targets[here]]
            log_p[here] = (chosen - highest[rows]).astype(np.float64) - log_sum[rows]
            greedy[here] = chosen == highest[rows]
        return log_p, greedy

    def _steps(self, output: NDArray[np.bool_]) -> Iterator[slice]:
        # a decode takes as many tokens as the batch, and as many logits as the memory, allows
        done = np.concatenate([[0], np.cumsum(output)])
        start = 0
        while start < len(output):
            last = int(np.searchsorted(done, done[start] + self._rows, side="right")) - 1
            end = min(start + len(self._batch.token), last, len(output))
            yield slice(start, end)
            start = end
