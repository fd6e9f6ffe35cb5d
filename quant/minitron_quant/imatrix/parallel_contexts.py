"""Decode chunks through a model whose inputs are summed, in one context or in two.

While a callback adds up rows, the threads of its decode wait. So on a processor two contexts each
take half of every group and half of the threads: one computes while the other adds up.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from minitron_core.cpu_limits import default_threads
from minitron_engine.llama.context import Context, Logits, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.process import interrupts
from minitron_quant.chunking import ChunkSettings, PartDone, decode_group, decode_part
from minitron_quant.imatrix.collector import MIN_TOKENS, Collector, first_half
from minitron_quant.imatrix.ordered_accumulation import AccumulationOrder

# tokens that ggml-cpu multiplies with a repacked weight at once; the rest one by one
_ROWS = 4


class ChunkDecoder(Protocol):
    """Decodes groups of chunks; a collector sums what it sees."""

    def decode(self, group: Tokens, part_done: PartDone) -> list[Logits]:
        """Decode chunks together; returns the logits of every token, empty if unread.

        Raises the errors of callbacks. Some rows may not be in the sums yet.
        """

    def wait(self) -> None:
        """Wait until all rows are in the sums; raises the errors of callbacks."""


@contextmanager
def open_decoder(
    model: Model,
    chunks: ChunkSettings,
    texts: Sequence[Tokens],
    collector: Collector,
    read_logits: bool,
) -> Iterator[ChunkDecoder]:
    """A decoder for the chunks of some texts: of two contexts where that gives the same sums."""
    sizes = {size for text in texts for size in _group_sizes(len(text), chunks.n_seq)}
    with ExitStack() as stack:
        if read_logits or not _fits_two(model, chunks, sizes):
            context = stack.enter_context(open_context(model, chunks.context(), collector.hook))
            yield _OneContext(context, chunks, collector, read_logits)
            return
        # a signal must not close the contexts while the second thread works in one
        stack.enter_context(interrupts.deferred())
        order, settings = AccumulationOrder(), _half_context(chunks, sizes)
        contexts = [
            _CollectingContext(stack.enter_context(open_context(model, settings, each.hook)), each)
            for each in (collector, collector.partner(order))
        ]
        pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="imatrix"))
        stack.callback(order.stop)
        yield _TwoContexts(contexts, chunks, order, pool)


def _group_sizes(total: int, n_seq: int) -> set[int]:
    """How many chunks the groups of a text have: most of them, and the last one."""
    return {min(total, n_seq), total % n_seq} - {0}


def _fits_two(model: Model, chunks: ChunkSettings, sizes: set[int]) -> bool:
    """Whether halves of all groups give the sums of whole groups, and threads can be halved.

    Experts get their rows slot by slot of the whole group. On GPUs no threads wait.
    """
    threads = chunks.threads or default_threads()
    architecture = model.metadata("general.architecture")
    experts = int(model.metadata(f"{architecture}.expert_count") or 0)
    return (
        model.offloaded == 0
        and experts == 0
        and threads % 2 == 0
        and max(sizes) > 1
        and all(_halves_alike(size, chunks) for size in sizes)
    )


def _halves_alike(group_size: int, chunks: ChunkSettings) -> bool:
    """Whether llama.cpp computes the halves of a group as it computes the whole.

    The same products are too small to count, and the same rows are the last of four.
    """
    length, half = chunks.part_of(group_size), first_half(group_size)
    for tokens in {length, chunks.n_ctx % length} - {0}:
        first, second = half * tokens, (group_size - half) * tokens
        counts = first + second >= MIN_TOKENS
        if second and (first % _ROWS or (second >= MIN_TOKENS) != counts):
            return False
    return True


def _half_context(chunks: ChunkSettings, sizes: set[int]) -> ContextSettings:
    """The settings of a context for the larger half of every group, a part at a time."""
    whole = chunks.context()
    most = max(first_half(size) * chunks.part_of(size) for size in sizes)
    n_seq = first_half(max(sizes))
    return replace(
        whole,
        n_ctx=n_seq * chunks.n_ctx,
        n_batch=most,
        n_ubatch=most,
        n_seq=n_seq,
        threads=(chunks.threads or default_threads()) // 2,
    )


@dataclass(frozen=True)
class _OneContext:
    """All chunks in one context."""

    context: Context
    chunks: ChunkSettings
    collector: Collector
    read_logits: bool

    def decode(self, group: Tokens, part_done: PartDone) -> list[Logits]:
        self.collector.group_size = len(group)
        # logits of every token: without them llama.cpp drops rows before the last layer's FFN
        logits = decode_group(self.context, group, self.chunks, 0, self.read_logits, part_done)
        self.collector.check()
        return logits

    def wait(self) -> None:
        self.collector.check()


@dataclass(frozen=True)
class _CollectingContext:
    context: Context
    collector: Collector


class _TwoContexts:
    """The first half of every group in one context, the second half in another thread's."""

    def __init__(
        self,
        contexts: list[_CollectingContext],
        chunks: ChunkSettings,
        order: AccumulationOrder,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._contexts, self._chunks, self._order, self._pool = contexts, chunks, order, pool
        self._threads = chunks.threads or default_threads()
        self._decodes = 0  # of each context
        self._pending: deque[Future[None]] = deque()  # of the second context

    def decode(self, group: Tokens, part_done: PartDone) -> list[Logits]:
        half, length = first_half(len(group)), self._chunks.part_of(len(group))
        first = self._decodes
        self._decodes += -(-self._chunks.n_ctx // length)
        self._pending.append(self._pool.submit(self._run, 1, group[half:], length, first))
        self._run(0, group[:half], length, first, part_done)
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        if self._order.stopped or interrupts.pending():
            self.wait()
        self._contexts[0].collector.check()
        return [np.empty((0, 0), np.float32)] * len(group)

    def wait(self) -> None:
        while self._pending:
            self._pending.popleft().result()
        if interrupts.pending():
            raise KeyboardInterrupt  # the signal itself is raised at the end of `deferred`
        self._contexts[0].collector.check()

    def _run(
        self,
        number: int,
        group: Tokens,
        length: int,
        first: int,
        part_done: PartDone = lambda share: None,
    ) -> None:
        """Decode half a group in one of the contexts, part by part, after `first` decodes."""
        context, order = self._contexts[number], self._order
        try:
            context.context.clear()
            for index, start in enumerate(range(0, self._chunks.n_ctx, length)):
                decode_number = 2 * (first + index) + number
                if interrupts.pending():
                    order.stop()
                if not order.begin(decode_number):
                    return
                if len(group):
                    context.collector.decode_number = decode_number
                    # the first decode runs alone, for minutes with a large model
                    share = 1 if decode_number == 0 else 2
                    context.context.use_threads(self._threads // share)
                    decode_part(context.context, group, start, length)
                order.end(decode_number)
                if start + length < self._chunks.n_ctx:
                    part_done((start + length) / self._chunks.n_ctx)
        except BaseException:
            order.stop()
            raise
