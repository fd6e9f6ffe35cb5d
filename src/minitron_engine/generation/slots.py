"""Several answers at once from one context: each in a sequence of its own, one decode for all."""

import codecs
import time
from collections import deque
from contextlib import ExitStack

import numpy as np

from minitron_core.errors import MinitronError, Usage
from minitron_engine.generation.generate import Generation, GenerationSettings, StopBuffer
from minitron_engine.generation.sampler import Sampler, open_sampler
from minitron_engine.generation.speculative import common_prefix
from minitron_engine.llama.context import Batch, Context
from minitron_engine.llama.tokenization import Tokens

_NONE = np.zeros(1, dtype=np.bool_)


class Job:
    """A prompt and its answer, which `Slots.step` fills in; `error` where it had to be given up."""

    def __init__(
        self, tokens: Tokens, settings: GenerationSettings, result: Generation | None = None
    ) -> None:
        self.tokens, self.settings = tokens, settings
        self.result = Generation() if result is None else result
        self.result.prompt_tokens = len(tokens)
        self.error: MinitronError | None = None
        self.done = False


class Slots:
    """The sequences of a context, each with room for `n_ctx` tokens, and jobs that wait for one.

    A job takes the free sequence whose cache has most of its prompt. For one thread only.
    """

    def __init__(self, context: Context, n_seq: int) -> None:
        self._context = context
        self._slots = [_Slot(number, context) for number in range(n_seq)]
        self._waiting: deque[Job] = deque()
        self._batch = Batch(context.n_batch)
        self._last = np.arange(context.n_batch) == context.n_batch - 1
        self.n_ctx = context.n_ctx // n_seq

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not any(slot.job for slot in self._slots)

    def submit(self, job: Job) -> None:
        """Queue a job. Usage: its prompt is longer than a sequence."""
        if len(job.tokens) >= self.n_ctx:
            raise Usage(
                f"the prompt has {len(job.tokens)} tokens, and the context takes {self.n_ctx}",
                "raise --ctx, or shorten the prompt",
            )
        self._waiting.append(job)

    def cancel(self, job: Job) -> None:
        """End a job now; what it has so far stays in its result."""
        if job in self._waiting:
            self._waiting.remove(job)
        for slot in self._slots:
            if slot.job is job:
                slot.release()
        job.done = True

    def step(self) -> list[tuple[Job, str]]:
        """Decode once for all jobs; gives those that advanced or ended with their new text.

        A job that fails ends with its `error`; the others go on.
        """
        told = self._admit()
        busy = sorted((slot for slot in self._slots if slot.job), key=lambda slot: len(slot.todo))
        if not busy:
            return told
        self._batch.clear()
        taken: list[tuple[_Slot, int]] = []
        for slot in busy:
            start = self._batch.size
            part = slot.todo[: len(self._last) - start]
            if len(part):
                output = self._last[-len(part) :] if len(part) == len(slot.todo) else _NONE
                self._batch.add(part, len(slot.cached), slot.sequence, output)
                taken.append((slot, len(part)))
        try:
            self._context.decode(self._batch)
        except MinitronError as error:
            return told + [(slot.fail(error), "") for slot in busy]
        end = 0
        for slot, count in taken:
            end += count
            job = slot.job
            text = slot.decoded(count, end - 1, self.n_ctx)
            if job is not None and text is not None:
                told.append((job, text))
        return told

    def close(self) -> None:
        """Give up all jobs and free their samplers."""
        for slot in self._slots:
            slot.release()
        self._waiting.clear()

    def _admit(self) -> list[tuple[Job, str]]:
        told = []
        free = [slot for slot in self._slots if not slot.job]
        while self._waiting and free:
            job = self._waiting.popleft()
            slot = max(free, key=lambda slot: slot.common(job.tokens))
            try:
                slot.start(job)
            except MinitronError as error:
                told.append((slot.fail(error), ""))
            else:
                free.remove(slot)
        return told


class _Slot:
    """One sequence: the tokens in its cache, and the job that it works on."""

    def __init__(self, sequence: int, context: Context) -> None:
        self.sequence = sequence
        self.cached: list[int] = []
        self.todo: Tokens = np.zeros(0, dtype=np.int32)
        self.job: Job | None = None
        self._context, self._model = context, context.model
        self._resources = ExitStack()

    def common(self, tokens: Tokens) -> int:
        """How much of a prompt is in the cache; its last token is always decoded anew."""
        return min(common_prefix(self.cached, tokens.tolist()), len(tokens) - 1)

    def start(self, job: Job) -> None:
        """Take a job on, with what the cache has of its prompt."""
        self.job = job
        reused = self.common(job.tokens)
        if not self._context.truncate(reused, self.sequence):
            # a model whose cache cannot be cut
            self._context.truncate(0, self.sequence)
            reused = 0
        del self.cached[reused:]
        self.todo = job.tokens[reused:]
        job.result.reused_tokens = reused
        opened = open_sampler(self._model, job.settings.sampling)
        self._sampler: Sampler = self._resources.enter_context(opened)
        self._sampler.accept_prompt(job.tokens.tolist())
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = StopBuffer(job.settings.stop)
        self._started = time.perf_counter()

    def decoded(self, count: int, output: int, n_ctx: int) -> str | None:
        """Go on after `count` tokens were decoded; the new text, None inside a prompt."""
        assert self.job is not None
        self.cached += self.todo[:count].tolist()
        self.todo = self.todo[count:]
        if len(self.todo):
            return None
        if self.job.settings.n_predict == 0:
            return self._finish("length")
        try:
            token = self._sampler.sample(self._context.handle, output)
        except MinitronError as error:
            self.fail(error)
            return ""
        self._note_time()
        if token is None or self._model.is_end(token):
            return self._finish("grammar" if token is None else "end")
        return self._accept(token, n_ctx)

    def _accept(self, token: int, n_ctx: int) -> str:
        assert self.job is not None
        result = self.job.result
        result.tokens.append(token)
        text = self._held.push(self._decoder.decode(self._model.piece(token)))
        result.text += text
        if self._held.stopped:
            return text + self._finish("stop")
        if len(result.tokens) == self.job.settings.n_predict:
            return text + self._finish("length")
        if len(self.cached) >= n_ctx:
            return text + self._finish("context")
        self.todo = np.array([token], dtype=np.int32)
        return text

    def _note_time(self) -> None:
        assert self.job is not None
        result, passed = self.job.result, time.perf_counter() - self._started
        if not result.tokens:
            result.prompt_seconds = result.first_token_seconds = passed
        result.generation_seconds = passed - result.prompt_seconds

    def _finish(self, reason: str) -> str:
        assert self.job is not None
        self.job.result.finish_reason = reason
        rest = ""
        if reason != "stop":
            rest = self._held.push(self._decoder.decode(b"", final=True)) + self._held.rest()
        self.job.result.text += rest
        self.job.done = True
        self.release()
        return rest

    def fail(self, error: MinitronError) -> Job:
        """End the job with an error, and forget the cache, of which nothing is certain."""
        job = self.job
        assert job is not None
        job.error, job.done = error, True
        self.release()
        self._context.truncate(0, self.sequence)
        self.cached.clear()
        return job

    def release(self) -> None:
        """Be free for another job; what is in the cache stays there."""
        self.job = None
        self.todo = self.todo[:0]
        self._resources.close()
