"""The one thread that talks to llama.cpp, and how coroutines give it work."""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from minitron_core.errors import MinitronError, OutOfResources
from minitron_engine.generation.slots import GenerationRequest, Slots

Update = tuple[int, str, bool]


class Ticket:
    """A request on its way for a coroutine, told as (number, text, whether it is the last).

    Several tickets may share their updates.
    """

    def __init__(
        self, request: GenerationRequest, number: int, updates: "asyncio.Queue[Update]"
    ) -> None:
        self.request = request
        self._number, self._updates = number, updates
        self._loop = asyncio.get_running_loop()

    def tell(self, text: str, last: bool) -> None:
        """Called in the worker's thread."""
        update = self._number, text, last
        # the loop is closed when the server stops
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._updates.put_nowait, update)


class Worker:
    """Runs the requests of all clients together; at most `most_waiting` are accepted at a time."""

    def __init__(self, slots: Slots, most_waiting: int) -> None:
        self._slots, self._most = slots, most_waiting
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tickets: dict[GenerationRequest, Ticket] = {}
        self._accepted = 0
        self._thread = threading.Thread(target=self._run, name="llama.cpp", daemon=True)
        self._thread.start()

    @property
    def n_ctx(self) -> int:
        """The tokens that a prompt and its answer may have together."""
        return self._slots.n_ctx

    def submit(self, ticket: Ticket) -> None:
        """Queue a request. OutOfResources: too many are waiting."""
        if self._accepted >= self._most:
            raise OutOfResources(f"{self._most} requests are waiting already", "try again later")
        self._accepted += 1
        self._inbox.put(lambda: self._begin(ticket))

    def release(self, ticket: Ticket) -> None:
        """The coroutine's last word on a ticket: whatever is left of its request is given up."""
        self._accepted -= 1
        self._inbox.put(lambda: self._end(ticket))

    def stop(self) -> None:
        """Finish the decode at hand, give up all requests, end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def _begin(self, ticket: Ticket) -> None:
        try:
            self._slots.submit(ticket.request)
        except MinitronError as error:
            ticket.request.error, ticket.request.done = error, True
            ticket.tell("", True)
        else:
            self._tickets[ticket.request] = ticket

    def _end(self, ticket: Ticket) -> None:
        if self._tickets.pop(ticket.request, None) is not None:
            self._slots.cancel(ticket.request)

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
        try:
            advanced = [(request, step.text) for request, step in self._slots.step()]
        except Exception as error:
            # not one request's fault: all that wait get the error, and the next ones start over
            advanced = [(request, "") for request in self._tickets]
            for request, _ in advanced:
                self._slots.cancel(request)
                request.error = MinitronError(f"{type(error).__name__}: {error}")
        for request, text in advanced:
            ticket = self._tickets.get(request)
            if ticket is not None:
                if request.done:
                    del self._tickets[request]
                if text or request.done:
                    ticket.tell(text, request.done)
