"""Ctrl-C and requests to end, while llama.cpp runs and calls back into Python.

Reason: an exception that a signal raises inside a ctypes callback is printed and lost, and the work
goes on with garbage. So around such calls a signal only sets a flag, and is delivered afterwards.
This is for exactness and costs no time that can be measured: two signal() calls around a decode.

And Python runs no handler while its main thread is inside a call of C. So in a `watched` block a
thread hears of a signal at once, and requests the stop that all work looks for.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from minitron_core import stop
from minitron_core.errors import OutOfResources
from minitron_engine.process import aborts, address_space

if TYPE_CHECKING:
    import socket

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
INTERRUPTED = 130
_AGAIN = 0.01  # seconds after which a signal that was lost comes again
# what came inside; no Event: a second signal inside its `set` would wait for the first for ever
_pending: list[int] = []
# signals that this process sent to itself: nobody pressed a key for them
_resent: list[int] = []
# one press may come twice, from the terminal and from a program that passes it on
_ONE_PRESS_SECONDS = 0.2


def end_cleanly() -> None:
    """Let SIGTERM, and SIGHUP where it is not ignored, end the process as Ctrl-C would.

    By an exception, so that files are closed and what is done can be continued; it is a SystemExit,
    which nothing takes for the Ctrl-C that only stops one answer.
    """
    for number in _ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _leave)
    hear = _unraisable()
    next(hear)
    sys.unraisablehook = hear.send


def _unraisable() -> Generator[None, "sys.UnraisableHookArgs", None]:
    """Python drops what a signal raises inside a finalizer or a weak reference's callback.

    And a lack of memory inside what C calls: the work would go on with garbage; or where a thread
    begins, as whatever error: who started it would wait for it for ever. Such a thread may have no
    memory for the frame of a function. This generator has its frame already, and what it calls
    first is no function of Python's.
    """
    while True:
        lost = yield
        begins = "in thread started by" in (lost.err_msg or "")
        if begins or issubclass(lost.exc_type, MemoryError):
            try:
                address_space.release()
                aborts.end(aborts.no_memory)
            finally:
                os._exit(OutOfResources.exit_code)
        with suppress(Exception):  # it would end the generator
            _again(lost)


def _again(lost: "sys.UnraisableHookArgs") -> None:
    numbers = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
    number = numbers.get(lost.exc_type)
    if number is None:
        sys.__unraisablehook__(lost)
    else:  # from a thread: here it would be dropped again
        main = threading.main_thread().ident or 0
        _resent.append(number)
        threading.Timer(_AGAIN, signal.pthread_kill, (main, number)).start()


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(INTERRUPTED)


def pending() -> bool:
    """Whether a signal came inside a `deferred` or `watched` block: callbacks may end early."""
    return bool(_pending) or stop.requested()


@contextmanager
def watched(answer: Callable[[], None], leave: Callable[[], None]) -> Iterator[None]:
    """Request a stop when a signal comes, whatever the main thread does.

    answer: called at once, in another thread. leave: called at the next Ctrl-C; it ends the
    process. Only in the main thread and outside of another such block; elsewhere nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    import socket  # here, since few commands watch

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    if before != -1:
        signal.set_wakeup_fd(before)
    watcher = threading.Thread(
        target=_watch, args=(reader, answer, leave), name="signals", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        if before == -1:
            signal.set_wakeup_fd(-1)
        writer.close()
        watcher.join()
        reader.close()
        stop.clear()


def _watch(reader: "socket.socket", answer: Callable[[], None], leave: Callable[[], None]) -> None:
    first = 0.0
    while numbers := reader.recv(1):
        number = numbers[0]
        if number in _resent:
            _resent.remove(number)
        elif number not in (signal.SIGINT, *_ENDING):
            continue
        elif not stop.requested():
            first = time.monotonic()
            stop.request()
            answer()
        elif number == signal.SIGINT and time.monotonic() - first > _ONE_PRESS_SECONDS:
            leave()


@contextmanager
def deferred() -> Iterator[None]:
    """Hold back the signals that have handlers in Python; they come at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are delivered to the main thread only
        return
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        _pending.append(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDING)}
    held: dict[int, Any] = {
        number: handler for number, handler in handlers.items() if callable(handler)
    }
    for number in held:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        if came:  # a flag of a block around this one stays
            _pending.clear()
        # Ctrl-C last: what ends the process matters more
        # called, not raised: a watcher would take a signal of our own for one more Ctrl-C
        for late in sorted(set(came), key=lambda each: each == signal.SIGINT):
            held[late](late, None)
