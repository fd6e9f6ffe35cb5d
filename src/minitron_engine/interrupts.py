"""Ctrl-C while llama.cpp runs and calls back into Python.

A KeyboardInterrupt that is raised inside a ctypes callback is printed and lost, and the work goes
on with garbage. So around such calls the signal only sets a flag, and is raised afterwards.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_pending = threading.Event()


def pending() -> bool:
    """Whether Ctrl-C was pressed inside a `deferred` block: callbacks may end the work early."""
    return _pending.is_set()


@contextmanager
def deferred() -> Iterator[None]:
    """Hold back Ctrl-C inside the block; KeyboardInterrupt is raised at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are delivered to the main thread only
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        _pending.set()

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if _pending.is_set():
            _pending.clear()
            raise KeyboardInterrupt
