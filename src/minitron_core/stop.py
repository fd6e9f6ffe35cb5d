"""A request to stop: set from any thread, looked at between two pieces of work.

Ctrl-C raises KeyboardInterrupt in the main thread only. Threads that encode or decode see the
request here, and llama.cpp, which calls no Python, through `FLAG`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# a C string, empty until a stop is requested; C reads it where it is
FLAG = bytearray(2)


def request() -> None:
    """Ask all work of this process to stop."""
    FLAG[0] = 1


def clear() -> None:
    """Take the request back."""
    FLAG[0] = 0


def requested() -> bool:
    """Whether a stop was requested."""
    return FLAG[0] != 0


def check() -> None:
    """Raise KeyboardInterrupt if a stop was requested."""
    if FLAG[0]:
        raise KeyboardInterrupt


@contextmanager
def keeping(describe: Callable[[], str]) -> Iterator[None]:
    """Add to a KeyboardInterrupt of the block what is kept of its work, if anything, as a note."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if note := describe():
            interrupt.add_note(note)
        raise


def kept(interrupt: BaseException) -> list[str]:
    """What `keeping` added to an interrupt, or to one that it came after; innermost first."""
    notes: list[str] = []
    seen: BaseException | None = interrupt
    while seen is not None:
        notes += [note for note in getattr(seen, "__notes__", ()) if note not in notes]
        seen = seen.__context__
    return notes
