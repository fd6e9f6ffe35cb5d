"""The answers of one client's request: given to the worker, and handed on as they come."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass

from minitron_cli.server.answers import DONE, Answer, Choice, event
from minitron_cli.server.errors import BadRequest, failure
from minitron_cli.server.metrics import Metrics
from minitron_cli.server.prepare import ParsedRequest
from minitron_cli.server.tools import ToolCall, ToolStream
from minitron_cli.server.worker import Subscription, Update, Worker
from minitron_core.errors import MinitronError
from minitron_engine.generation.slot import GenerationRequest
from minitron_engine.generation.steps import GenerationStep


class Streams:
    """The choices of a request. BadRequest: a prompt that is longer than the context."""

    def __init__(self, worker: Worker, parsed: ParsedRequest, metrics: Metrics) -> None:
        self._worker, self._metrics = worker, metrics
        self._queue: asyncio.Queue[Update] = asyncio.Queue()
        self.choices: list[Choice] = []
        for tokens, echoed in zip(parsed.prompts, parsed.echoed, strict=True):
            if len(tokens) >= worker.n_ctx:
                message = f"the prompt has {len(tokens)} tokens, the context takes {worker.n_ctx}"
                raise BadRequest(message, parsed.field, "context_length_exceeded")
            for settings in parsed.settings:
                request = GenerationRequest(tokens, settings)
                self.choices.append(Choice(len(self.choices), request, echoed, parsed.tools))
        self.updates = self._updates()

    async def _updates(self) -> AsyncGenerator[Update]:
        """Updates of all subscriptions; raises their errors; releases them at its end."""
        subscriptions = []
        try:
            for choice in self.choices:
                subscription = Subscription(choice.request, choice.number, self._queue)
                self._worker.submit(subscription)
                subscriptions.append(subscription)
            left = len(subscriptions)
            while left:
                update = await self._queue.get()
                error = self.choices[update[0]].request.error
                if error is not None:
                    raise error
                left -= update[2]
                yield update
        finally:
            for subscription in subscriptions:
                self._worker.release(subscription)
                self._metrics.generated(subscription.request.result.timings)

    async def finish(self) -> None:
        """Wait for the end of all choices."""
        async for _ in self.updates:
            pass

    async def events(self, answer: Answer, first: Update, counted: bool) -> AsyncIterator[bytes]:
        """The stream of an answer, of which the first update is there already."""
        progress = [Progress(choice, answer) for choice in self.choices]
        try:
            update: Update | None = first
            while update is not None:
                number, step, last = update
                for part in filter(None, progress[number].events(step, last)):
                    yield part
                update = await anext(self.updates, None)
            yield answer.ending(self.choices, counted)
        except MinitronError as error:
            yield event(failure(error)[0]) + DONE
        finally:
            await self.updates.aclose()


@dataclass
class Progress:
    """How much of a choice was sent."""

    choice: Choice
    answer: Answer
    opened: bool = False
    shown: int = 0

    def __post_init__(self) -> None:
        self._tools = ToolStream(self.choice.tools) if self.choice.tools else None

    def events(self, step: GenerationStep | None, last: bool) -> Iterator[bytes]:
        """What a step adds."""
        if not self.opened:
            self.opened, self.shown = True, len(self.choice.echoed)
            yield self.answer.opening(self.choice)
        text = step.text if step else ""
        logprobs = [step.logprob] if step and step.logprob else []
        if self._tools is not None:
            text = self._tools.push(text)
        if text or logprobs:
            yield self.answer.piece(self.choice, text, logprobs, self.shown)
            self.shown += len(text)
        if last:
            calls: list[ToolCall] = []
            if self._tools is not None:
                text, calls = self._tools.finish()
                if text:
                    yield self.answer.piece(self.choice, text, [], self.shown)
            yield self.answer.closing(self.choice, calls)
