"""Several answers at once from one context: each in a sequence of its own, one decode for all."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from minitron_core.errors import MinitronError, Unsupported
from minitron_engine.generation.generate import check_room
from minitron_engine.generation.slot import GenerationRequest, Slot, Steps
from minitron_engine.generation.speculative import Drafter
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import Context
from minitron_engine.llama.tokenization import Tokens

_NO_OUTPUT = np.zeros(1, dtype=np.bool_)


class Slots:
    """The sequences of a context, and the requests that wait for one. For one thread only.

    A request gets the free sequence whose cache has most of its prompt. n_ctx: the most tokens of
    a prompt and its answer; an even part of the context where it is None. n_outputs: the most
    rows of logits of one decode, as the context was opened with, at least n_seq.
    drafters: one for each sequence, or none. decodes: how often llama.cpp decoded.
    Raises Unsupported for drafters where the model's cache cannot be cut.
    """

    def __init__(
        self,
        context: Context,
        n_seq: int,
        n_ctx: int | None = None,
        n_outputs: int | None = None,
        drafters: Sequence[Drafter] = (),
    ) -> None:
        self.n_ctx = n_ctx or context.n_ctx // n_seq
        self.decodes = 0
        self._context = context
        self._n_outputs = n_outputs or n_seq
        self._slots = [Slot(number, context, self.n_ctx) for number in range(n_seq)]
        handle = context.model.handle
        if drafters and (api.llama_model_is_recurrent(handle) or api.llama_model_is_hybrid(handle)):
            raise Unsupported(
                f"{context.model.path.name} has a state that cannot go back to before a draft",
                "leave out --draft and --lookup",
            )
        for slot, drafter in zip(self._slots, drafters, strict=False):
            slot.drafter = drafter
        self._waiting: deque[GenerationRequest] = deque()
        self._batch = Batch(context.n_batch)
        self._last = np.arange(context.n_batch) == context.n_batch - 1

    @property
    def busy(self) -> int:
        """How many requests have a sequence."""
        return sum(slot.request is not None for slot in self._slots)

    @property
    def waiting(self) -> int:
        """How many requests wait for a sequence."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self.busy

    def preload(self, tokens: Tokens) -> None:
        """Decode what prompts have in common once, for all sequences of a unified cache."""
        for start in range(0, len(tokens), len(self._last)):
            part = tokens[start : start + len(self._last)]
            self._batch.clear()
            self._batch.add(part, start, 0, _NO_OUTPUT)
            self._context.decode(self._batch)
        for slot in self._slots:
            if slot.sequence:
                self._context.share(slot.sequence, len(tokens))
            slot.cached = tokens.tolist()

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Usage: its prompt is longer than a sequence."""
        check_room(len(request.tokens), self.n_ctx)
        self._waiting.append(request)

    def cancel(self, request: GenerationRequest) -> None:
        """End a request now; what it has so far stays in its result."""
        if request in self._waiting:
            self._waiting.remove(request)
        for slot in self._slots:
            if slot.request is request:
                slot.release()
        request.done = True

    def step(self) -> Steps:
        """Decode once for all requests; gives a step of each that advanced or ended.

        A request that fails ends with its `error`; the others go on.
        """
        steps = self._admit()
        busy = sorted(
            (slot for slot in self._slots if slot.request), key=lambda slot: len(slot.todo)
        )
        if not busy:
            return steps
        taken = self._fill(busy)
        try:
            self._context.decode(self._batch)
        except MinitronError as error:
            return steps + [slot.fail(error) for slot in busy]
        self.decodes += 1
        end = 0
        for slot, count in taken:
            end += count
            steps += slot.decoded(count, end - 1)
        return steps

    def _fill(self, busy: list[Slot]) -> list[tuple[Slot, int]]:
        """Make the batch of what the slots have to do, as far as tokens and logits have room."""
        self._batch.clear()
        taken: list[tuple[Slot, int]] = []
        rows = self._n_outputs
        for after, slot in zip(reversed(range(len(busy))), busy, strict=True):
            room = len(self._last) - self._batch.size
            # each of the slots after this one may need a row
            part = slot.todo[: min(room, rows - after) if slot.every else room]
            if len(part):
                last = self._last[-len(part) :] if len(part) == len(slot.todo) else _NO_OUTPUT
                output = np.ones(len(part), dtype=np.bool_) if slot.every else last
                self._batch.add(part, len(slot.cached), slot.sequence, output)
                taken.append((slot, len(part)))
                rows -= int(np.count_nonzero(output))
        return taken

    def close(self) -> None:
        """Give up all requests and free their samplers."""
        for slot in self._slots:
            slot.release()
        self._waiting.clear()

    def _admit(self) -> Steps:
        failed = []
        free = [slot for slot in self._slots if not slot.request]
        while self._waiting and free:
            request = self._waiting.popleft()
            slot = max(free, key=lambda slot: slot.common(request.tokens))
            try:
                slot.start(request)
            except MinitronError as error:
                failed.append(slot.fail(error))
            else:
                free.remove(slot)
        return failed
