"""llama.cpp's log: kept in a buffer and handed to Python's logging, never to stderr itself."""

import ctypes
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from minitron_engine.llama.binding import api

logger = logging.getLogger("minitron.llama_cpp")

# enum ggml_log_level of ggml.h; the binding's own table has them in another order
_LEVELS = {
    0: logging.INFO,
    1: logging.DEBUG,
    2: logging.INFO,
    3: logging.WARNING,
    4: logging.ERROR,
}
_CONTINUATION = 5

_recent: deque[tuple[int, str]] = deque(maxlen=200)
_captures: list[list[str]] = []
_hidden: list[list[str]] = []  # those of the captures that hide what they take
_open_line = ""
_open_level = logging.INFO
logger.addHandler(logging.NullHandler())


def _finish(line: str, level: int) -> None:
    if line.strip():
        _recent.append((level, line.strip()))
        if not _hidden:
            logger.log(level, "%s", line)
    for lines in _captures:
        lines.append(line)


def _receive(level: int, text: bytes | None, _data: object) -> None:
    # llama.cpp emits one line in several calls; an exception here would only be printed by ctypes
    global _open_line, _open_level
    if text is None:
        return
    if level != _CONTINUATION:
        _open_level = _LEVELS.get(level, logging.INFO)
    _open_line += text.decode("utf-8", errors="replace")
    *lines, _open_line = _open_line.split("\n")
    for line in lines:
        _finish(line, _open_level)


_callback = api.llama_log_callback(_receive)


def install() -> None:
    """Send llama.cpp's log here instead of to stderr (the binding's own choice at import)."""
    api.llama_log_set(_callback, ctypes.c_void_p(0))


def last_error(after: str = "") -> str:
    """The latest error that llama.cpp logged, or an empty string.

    after: prefer what follows this text in one of the latest errors.
    """
    errors = [line for level, line in reversed(_recent) if level == logging.ERROR]
    tails = (line.partition(after)[2] for line in errors[:3] if after and after in line)
    return next(tails, errors[0] if errors else "")


@contextmanager
def capture(*, shown: bool = True) -> Iterator[list[str]]:
    """Collect every complete line that llama.cpp logs inside the block.

    shown: Python's logging gets the lines too.
    """
    lines: list[str] = []
    _captures.append(lines)
    hidden = [] if shown else [lines]
    _hidden.extend(hidden)
    try:
        yield lines
    finally:
        _captures[:] = [each for each in _captures if each is not lines]
        _hidden[:] = [each for each in _hidden if each is not lines]
