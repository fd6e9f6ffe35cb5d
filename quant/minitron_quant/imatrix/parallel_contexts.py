"""How groups of chunks go through a model whose inputs are summed: in one context, or in two.

While a callback adds up rows, the threads of its decode wait. So on a processor there are two
lanes, each with half of every group and half of the threads: one computes while the other adds up.
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
from minitron_quant.chunking import ChunkSettings, decode_group, decode_part
from minitron_quant.imatrix.collector import MIN_TOKENS, Collector, first_half
from minitron_quant.imatrix.ordered_accumulation import AccumulationOrder

# tokens that ggml-cpu multiplies with a repacked weight at once; those left over it takes alone
_ROWS = 4


class Lanes(Protocol):
    """The way of groups of chunks through a model."""

    def decode(self, group: Tokens) -> list[Logits]:
        """Decode chunks together; the logits of every token, empty where nobody reads them.

        Raises what went wrong in a callback. Some rows may still be on their way to the sums.
        """

    def settle(self) -> None:
        """Wait until all rows are added, and raise what went wrong."""


@contextmanager
def open_decoder(
    model: Model,
    chunks: ChunkSettings,
    texts: Sequence[Tokens],
    collector: Collector,
    read_logits: bool,
) -> Iterator[Lanes]:
    """Contexts for a collector and the chunks of some texts: two where that gives the same sums."""
    sizes = {size for text in texts for size in _group_sizes(len(text), chunks.n_seq)}
    with ExitStack() as stack:
        if read_logits or not _fits_two(model, chunks, sizes):
            context = stack.enter_context(open_context(model, chunks.context(), collector.hook))
            yield _One(context, chunks, collector, read_logits)
            return
        # a signal that ended the contexts would find a lane at work in them
        stack.enter_context(interrupts.deferred())
        turns, settings = AccumulationOrder(), _half_context(chunks, sizes)
        lanes = [
            _Lane(stack.enter_context(open_context(model, settings, each.hook)), each)
            for each in (collector, collector.second(turns))
        ]
        pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="lane"))
        stack.callback(turns.stop)
        yield _Two(lanes, chunks, turns, pool)


def _group_sizes(total: int, n_seq: int) -> set[int]:
    """How many chunks of a text are decoded together: in most groups, and in the last one."""
    return {min(total, n_seq), total % n_seq} - {0}


def _fits_two(model: Model, chunks: ChunkSettings, sizes: set[int]) -> bool:
    """Whether halves of all groups give the sums of the whole, and threads can be halved.

    Experts get their rows slot by slot of the whole. On GPUs a decode has no threads to wait.
    """
    threads = chunks.threads or default_threads()
    family = model.metadata("general.architecture")
    experts = int(model.metadata(f"{family}.expert_count") or 0)
    return (
        model.offloaded == 0
        and experts == 0
        and threads % 2 == 0
        and max(sizes) > 1
        and all(_halves_alike(size, chunks) for size in sizes)
    )


def _halves_alike(together: int, chunks: ChunkSettings) -> bool:
    """Whether llama.cpp computes the halves of a group as it computes the whole.

    The same products are too small to count, and the same rows are the last of four.
    """
    length, half = chunks.part_of(together), first_half(together)
    for tokens in {length, chunks.n_ctx % length} - {0}:
        first, second = half * tokens, (together - half) * tokens
        counts = first + second >= MIN_TOKENS
        if second and (first % _ROWS or (second >= MIN_TOKENS) != counts):
            return False
    return True


def _half_context(chunks: ChunkSettings, sizes: set[int]) -> ContextSettings:
    """The context that takes the larger half of every group, a part at a time."""
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
class _One:
    """All chunks in one context."""

    context: Context
    chunks: ChunkSettings
    collector: Collector
    read_logits: bool

    def decode(self, group: Tokens) -> list[Logits]:
        self.collector.together = len(group)
        # logits of every token: without them llama.cpp drops rows before the last layer's FFN
        logits = decode_group(self.context, group, self.chunks, 0, self.read_logits)
        self.collector.check()
        return logits

    def settle(self) -> None:
        self.collector.check()


@dataclass(frozen=True)
class _Lane:
    context: Context
    collector: Collector


class _Two:
    """The first half of every group in one context, the second half in another, by turns."""

    def __init__(
        self,
        lanes: list[_Lane],
        chunks: ChunkSettings,
        turns: AccumulationOrder,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._lanes, self._chunks, self._turns, self._pool = lanes, chunks, turns, pool
        self._decodes = 0  # of each lane
        self._behind: deque[Future[None]] = deque()  # what the second lane has to do

    def decode(self, group: Tokens) -> list[Logits]:
        half, length = first_half(len(group)), self._chunks.part_of(len(group))
        first = self._decodes
        self._decodes += -(-self._chunks.n_ctx // length)
        self._behind.append(self._pool.submit(self._run, 1, group[half:], length, first))
        self._run(0, group[:half], length, first)
        while self._behind and self._behind[0].done():
            self._behind.popleft().result()
        if self._turns.stopped or interrupts.pending():
            self.settle()
        self._lanes[0].collector.check()
        return [np.empty((0, 0), np.float32)] * len(group)

    def settle(self) -> None:
        while self._behind:
            self._behind.popleft().result()
        if interrupts.pending():
            raise KeyboardInterrupt  # whichever signal it was comes at the end of `deferred`
        self._lanes[0].collector.check()

    def _run(self, number: int, group: Tokens, length: int, first: int) -> None:
        """Decode half a group in one of the lanes, part after part; `first` decodes were before."""
        lane, turns = self._lanes[number], self._turns
        try:
            lane.context.clear()
            for index, start in enumerate(range(0, self._chunks.n_ctx, length)):
                turn = 2 * (first + index) + number
                if interrupts.pending():
                    turns.stop()
                if not turns.begin(turn):
                    return
                if len(group):
                    lane.collector.number = turn
                    decode_part(lane.context, group, start, length)
                turns.end(turn)
        except BaseException:
            turns.stop()
            raise
