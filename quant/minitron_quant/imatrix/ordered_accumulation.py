"""The order in which two contexts add rows to the same sums."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class AccumulationOrder:
    """Orders the decodes of two threads: the first makes those of even number, the second the odd.

    Every sum gets the rows of a decode after those of the decode before it, as if one thread made
    all decodes. A thread waits for nothing else.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._added: dict[str, int] = {}  # the last decode that added to a sum
        self._ended = [-1, -1]  # the last decode of each thread
        self.stopped = False

    def begin(self, number: int) -> bool:
        """Wait until a decode may begin; False once the work has stopped.

        The very first decode runs alone: it finds the sums that there are.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or number == 0 or self._ended[0] >= 0)
            return not self.stopped

    @contextmanager
    def adding(self, name: str, number: int) -> Iterator[None]:
        """Wait until a decode may add its rows to a sum; the block adds them."""
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self._is_next(name, number))
        yield
        with self._changed:
            self._added[name] = number
            self._changed.notify_all()

    def end(self, number: int) -> None:
        """A decode has ended; it adds nothing to the sums that it has not added to."""
        with self._changed:
            self._ended[number % 2] = number
            self._changed.notify_all()

    def stop(self) -> None:
        """Release all waiting threads; the sums are incomplete and must not be used."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def _is_next(self, name: str, number: int) -> bool:
        before = number - 1
        return self._added.get(name, -1) >= before or self._ended[before % 2] >= before
