"""Several answers at once from one context: each in a sequence of its own, one decode for all."""

from collections import deque
from contextlib import ExitStack

import numpy as np

from minitron_core.errors import MinitronError
from minitron_engine.generation.generate import check_room
from minitron_engine.generation.sampler import TokenSampler, open_sampler
from minitron_engine.generation.sequence import common_prefix
from minitron_engine.generation.steps import (
    Generation,
    GenerationSettings,
    GenerationStep,
    StepBuilder,
)
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import Context
from minitron_engine.llama.tokenization import Tokens

_NO_OUTPUT = np.zeros(1, dtype=np.bool_)


class GenerationRequest:
    """A prompt for `Slots`, and its answer so far; `error` says why it had to be given up.

    sampler: chooses the tokens instead of the samplers that the settings name.
    """

    def __init__(
        self, tokens: Tokens, settings: GenerationSettings, sampler: TokenSampler | None = None
    ) -> None:
        self.tokens, self.settings, self.sampler = tokens, settings, sampler
        self.result = Generation()
        self.error: MinitronError | None = None
        self.done = False


Steps = list[tuple[GenerationRequest, GenerationStep]]


class Slots:
    """The sequences of a context, and the requests that wait for one. For one thread only.

    A request gets the free sequence whose cache has most of its prompt. n_ctx: the most tokens of
    a prompt and its answer; an even part of the context where it is None.
    """

    def __init__(self, context: Context, n_seq: int, n_ctx: int | None = None) -> None:
        self.n_ctx = n_ctx or context.n_ctx // n_seq
        self._context = context
        self._slots = [_Slot(number, context, self.n_ctx) for number in range(n_seq)]
        self._waiting: deque[GenerationRequest] = deque()
        self._batch = Batch(context.n_batch)
        self._last = np.arange(context.n_batch) == context.n_batch - 1

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not any(slot.request for slot in self._slots)

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
        self._batch.clear()
        taken: list[tuple[_Slot, int]] = []
        for slot in busy:
            start = self._batch.size
            part = slot.todo[: len(self._last) - start]
            if len(part):
                output = self._last[-len(part) :] if len(part) == len(slot.todo) else _NO_OUTPUT
                self._batch.add(part, len(slot.cached), slot.sequence, output)
                taken.append((slot, len(part)))
        try:
            self._context.decode(self._batch)
        except MinitronError as error:
            return steps + [slot.fail(error) for slot in busy]
        end = 0
        for slot, count in taken:
            end += count
            steps += slot.decoded(count, end - 1)
        return steps

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


class _Slot:
    """One sequence: the tokens in its cache, and the request that it works on."""

    def __init__(self, sequence: int, context: Context, n_ctx: int) -> None:
        self.sequence = sequence
        self.cached: list[int] = []
        self.todo: Tokens = np.zeros(0, dtype=np.int32)
        self.request: GenerationRequest | None = None
        self._context, self._n_ctx = context, n_ctx
        self._resources = ExitStack()

    def common(self, tokens: Tokens) -> int:
        """How much of a prompt is in the cache; its last token is always decoded again."""
        return min(common_prefix(self.cached, tokens), len(tokens) - 1)

    def start(self, request: GenerationRequest) -> None:
        """Take a request on, with what the cache has of its prompt."""
        self.request = request
        reused = self.common(request.tokens)
        if not self._context.truncate(reused, self.sequence):
            # a model whose cache cannot be cut
            self._context.truncate(0, self.sequence)
            reused = 0
        del self.cached[reused:]
        self.todo = request.tokens[reused:]
        model, settings = self._context.model, request.settings
        if request.sampler is None:
            sampler = self._resources.enter_context(open_sampler(model, settings.sampling))
            sampler.accept_prompt(request.tokens.tolist())
            self._sampler: TokenSampler = sampler
        else:
            self._sampler = request.sampler
        self._builder = StepBuilder(model, settings, len(request.tokens), reused)

    def decoded(self, count: int, output: int) -> Steps:
        """Go on after `count` tokens were decoded; nothing comes of it inside a prompt."""
        assert self.request is not None
        self.cached += self.todo[:count].tolist()
        self.todo = self.todo[count:]
        if len(self.todo):
            return []
        if self.request.settings.n_predict == 0:
            return [self._tell(self._builder.end("length"))]
        try:
            step = self._builder.take(self._sampler.sample(self._context, output))
        except MinitronError as error:
            return [self.fail(error)]
        if step.finish_reason is None and len(self.cached) >= self._n_ctx:
            step = self._builder.end("context", step.text, step.token)
        return [self._tell(step)]

    def _tell(self, step: GenerationStep) -> tuple[GenerationRequest, GenerationStep]:
        request = self.request
        assert request is not None
        request.result.add(step)
        if step.finish_reason is None:
            self.todo = np.array([step.token], dtype=np.int32)
        else:
            request.done = True
            self.release()
        return request, step

    def fail(self, error: MinitronError) -> tuple[GenerationRequest, GenerationStep]:
        """End the request with an error, and forget the cache, of which nothing is certain."""
        request = self.request
        assert request is not None
        request.error, request.done = error, True
        self.release()
        self._context.truncate(0, self.sequence)
        self.cached.clear()
        step = GenerationStep("", None, "error", request.result.timings)
        request.result.add(step)
        return request, step

    def release(self) -> None:
        """Be free for another request; what is in the cache stays there."""
        self.request = None
        self.todo = self.todo[:0]
        self._resources.close()
