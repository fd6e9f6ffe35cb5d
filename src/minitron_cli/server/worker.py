"""The one thread that calls llama.cpp, and how coroutines give it work."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from minitron_core.errors import MinitronError, OutOfResources
from minitron_engine.generation.slot import GenerationRequest
from minitron_engine.generation.slots import Slots
from minitron_engine.generation.steps import GenerationStep

# of which answer, the step if there is one, and whether it is the last
Update = tuple[int, GenerationStep | None, bool]
Result = TypeVar("Result")


class Subscription:
    """A coroutine's interest in a request, and the queue that takes its updates.

    Several subscriptions may share one queue.
    """

    def __init__(
        self, request: GenerationRequest, number: int, updates: "asyncio.Queue[Update]"
    ) -> None:
        self.request = request
        self._number, self._updates = number, updates
        self._loop = asyncio.get_running_loop()

    def publish(self, step: GenerationStep | None, last: bool) -> None:
        """Put an update into the queue; called in the worker's thread."""
        update = self._number, step, last
        # the loop is closed when the server stops
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._updates.put_nowait, update)


class Worker:
    """Runs the requests of all clients together; at most `most_waiting` are accepted at a time."""

    def __init__(self, slots: Slots, most_waiting: int) -> None:
        self._slots, self._most = slots, most_waiting
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._subscriptions: dict[GenerationRequest, Subscription] = {}
        self._accepted = 0
        self._thread = threading.Thread(target=self._run, name="llama.cpp", daemon=True)
        self._thread.start()

    @property
    def n_ctx(self) -> int:
        """The tokens that a prompt and its answer may have together."""
        return self._slots.n_ctx

    @property
    def decodes(self) -> int:
        """How often llama.cpp decoded."""
        return self._slots.decodes

    def load(self) -> tuple[int, int]:
        """How many answers are being generated, and how many wait for a place."""
        busy = self._slots.busy
        return busy, max(0, self._accepted - busy)

    async def run(self, function: Callable[[], Result]) -> Result:
        """What a function returns that calls llama.cpp, between two steps of the others."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def finish(set_result: Callable[[], None]) -> None:
            # the client may be gone, or the loop closed
            if not future.cancelled():
                set_result()

        def order() -> None:
            try:
                result = function()
            except Exception as error:
                outcome = partial(future.set_exception, error)
            else:
                outcome = partial(future.set_result, result)
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(finish, outcome)

        self._inbox.put(order)
        return await future

    def submit(self, subscription: Subscription) -> None:
        """Queue a request. OutOfResources: too many are waiting."""
        if self._accepted >= self._most:
            raise OutOfResources(f"{self._most} requests are waiting already", "try again later")
        self._accepted += 1
        self._inbox.put(lambda: self._begin(subscription))

    def release(self, subscription: Subscription) -> None:
        """End a subscription; what is left of its request is cancelled."""
        self._accepted -= 1
        self._inbox.put(lambda: self._end(subscription))

    def stop(self) -> None:
        """Finish the current decode, cancel all requests, end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def _begin(self, subscription: Subscription) -> None:
        try:
            self._slots.submit(subscription.request)
        except MinitronError as error:
            subscription.request.error, subscription.request.done = error, True
            subscription.publish(None, True)
        else:
            self._subscriptions[subscription.request] = subscription

    def _end(self, subscription: Subscription) -> None:
        if self._subscriptions.pop(subscription.request, None) is not None:
            self._slots.cancel(subscription.request)

    def _run(self) -> None:
        while True:
            try:
                order = self._inbox.get(block=self._slots.idle)
            except queue.Empty:
                self._step()
                continue
            if order is None:
                self._slots.close()
                return
            order()

    def _step(self) -> None:
        advanced: Sequence[tuple[GenerationRequest, GenerationStep | None]]
        try:
            advanced = self._slots.step()
        except Exception as error:
            # not one request's fault: all that wait get the error, and the next ones start over
            advanced = [(request, None) for request in self._subscriptions]
            for request, _ in advanced:
                self._slots.cancel(request)
                request.error = MinitronError(f"{type(error).__name__}: {error}")
        for request, step in advanced:
            subscription = self._subscriptions.get(request)
            if subscription is not None:
                last = step is None or step.finish_reason is not None
                if last:
                    del self._subscriptions[request]
                if last or (step is not None and (step.text or step.logprob)):
                    subscription.publish(step, last)
