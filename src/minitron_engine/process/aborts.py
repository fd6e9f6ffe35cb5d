"""llama.cpp ends the process where a check of its own fails; what the user reads then.

Nothing can be undone at that point: the process must end. A program that registers a listener is
told why before it does, and may leave in its own way.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from minitron_core.errors import Denied, MinitronError, OutOfResources

Listener = Callable[[MinitronError], None]
Meaning = Callable[[str], MinitronError]

_listener: Listener | None = None
_meanings: list[Meaning] = []
_kept: list[Any] = []  # llama.cpp holds the pointers for the life of the process
_ending = threading.Lock()  # several threads may meet the end at once; one tells
# how llama.cpp, the system, and C++'s names of exceptions (of memory, of threads) say it
_MEMORY = re.compile("alloc|memory|mem_buffer|failed to map|system_error|start new thread")


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


def end(explain: Callable[[], MinitronError]) -> None:
    """Tell the listener why the process cannot go on, and end it; what C calls must not raise."""
    _ending.acquire()
    code = OutOfResources.exit_code  # of a lack of memory in which even the telling fails
    try:
        error = explain()
        code = error.exit_code
        if _listener is not None:
            _listener(error)
    finally:
        os._exit(code)


def install(library: Any) -> None:
    """Have libggml-base report here, where somebody listens; otherwise it prints a backtrace."""
    if _listener is None or _kept:
        return
    import ctypes  # here, so that whoever only listens does not load it

    def tell(message: bytes) -> None:
        end(lambda: explained(message.decode(errors="replace")))

    def terminate() -> None:
        end(lambda: explained(f"an exception that nobody catches, {_current_exception(library)}"))

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_char_p)(tell))
    library.ggml_set_abort_callback(_kept[0])
    _kept.append(ctypes.CFUNCTYPE(None)(terminate))
    with suppress(AttributeError):  # std::set_terminate, by the name that most compilers give it
        library["_ZSt13set_terminatePFvvE"](_kept[1])


def _current_exception(library: Any) -> str:
    """The C++ name of the exception's type, such as St9bad_alloc."""
    import ctypes

    current = library["__cxa_current_exception_type"]
    current.restype = ctypes.c_void_p
    # a std::type_info: its table of functions, and its name
    fields = ctypes.cast(current(), ctypes.POINTER(ctypes.c_char_p))
    return (fields[1] or b"").decode(errors="replace") if fields else "unknown"


def is_memory(reason: str) -> bool:
    """Whether something failed for a lack of memory, or of threads, by what is said about it."""
    return _MEMORY.search(reason) is not None


def explained(message: str) -> MinitronError:
    """The error for what ggml_abort says: FILE:LINE: and a sentence or an assertion."""
    reason = message.split(": ", 1)[-1].strip()
    if "RPC server" in reason:
        return Denied(
            "an RPC server stopped answering, and what it held of the model is lost",
            "start it again, and then this command",
        )
    if is_memory(reason):
        return no_memory()
    if _meanings:
        return _meanings[-1](reason)
    return MinitronError(f"llama.cpp gave up: {reason}", "-v shows what it said before")


def no_memory() -> OutOfResources:
    """The error for memory, or a thread, that could not be had."""
    return OutOfResources(
        "there is not enough memory",
        "close other programs, or choose a smaller --ctx or --batch, or fewer --threads",
    )
