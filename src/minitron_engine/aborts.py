"""llama.cpp ends the process where a check of its own fails; what the user reads then.

Nothing can be undone at that point: the process must end. A program that registers a listener is
told why before it does, and may leave in its own way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from minitron_engine.errors import Denied, MinitronError

Listener = Callable[[MinitronError], None]
Meaning = Callable[[str], MinitronError]

_listener: Listener | None = None
_meanings: list[Meaning] = []
_kept: list[Any] = []  # llama.cpp holds the pointer for the life of the process


def on_abort(listener: Listener) -> None:
    """Call `listener` when llama.cpp is about to abort the process, from whichever thread it is.

    It takes effect when llama.cpp is started (`devices.start`).
    """
    global _listener
    _listener = listener


@contextmanager
def meaning(explain: Meaning) -> Iterator[None]:
    """Have `explain` say what an abort inside the block means, given llama.cpp's reason."""
    _meanings.append(explain)
    try:
        yield
    finally:
        _meanings.remove(explain)


def install(library: Any) -> None:
    """Have libggml-base report here, where somebody listens; otherwise it prints a backtrace."""
    if _listener is None or _kept:
        return
    import ctypes  # here, so that whoever only listens does not load it

    def tell(message: bytes) -> None:
        if _listener is not None:
            _listener(explained(message.decode(errors="replace")))

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_char_p)(tell))
    library.ggml_set_abort_callback(_kept[0])


def explained(message: str) -> MinitronError:
    """The error for what ggml_abort says: FILE:LINE: and a sentence or an assertion."""
    reason = message.split(": ", 1)[-1].strip()
    if "RPC server" in reason:
        return Denied(
            "an RPC server stopped answering, and what it held of the model is lost",
            "start it again, and then this command",
        )
    if _meanings:
        return _meanings[-1](reason)
    return MinitronError(f"llama.cpp gave up: {reason}", "-v shows what it said before")
