"""Whose rows are added next, where two lanes add to the same sums."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class AccumulationOrder:
    """The order of decodes that two threads make: 2i is the first lane's, 2i + 1 the second's.

    Every sum gets the rows of a decode after those of the decode before it, as if one thread made
    them all; a lane waits for no more than that.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._added: dict[str, int] = {}  # whose rows a sum got last
        self._ended = [-1, -1]  # the last decode of either lane
        self.stopped = False

    def begin(self, number: int) -> bool:
        """Wait until a decode may begin; False where the work is to end.

        The very first one is made alone: it finds out what there is to add up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or number == 0 or self._ended[0] >= 0)
            return not self.stopped

    @contextmanager
    def adding(self, name: str, number: int) -> Iterator[None]:
        """Around the addition of a decode's rows to a sum: waits for its turn."""
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self._is_next(name, number))
        yield
        with self._changed:
            self._added[name] = number
            self._changed.notify_all()

    def end(self, number: int) -> None:
        """A decode has ended: what it has not added by now it has nothing to add to."""
        with self._changed:
            self._ended[number % 2] = number
            self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody wait any longer: the work is to end, and its sums are not used."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def _is_next(self, name: str, number: int) -> bool:
        before = number - 1
        return self._added.get(name, -1) >= before or self._ended[before % 2] >= before
