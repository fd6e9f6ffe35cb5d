"""llama.cpp ends the process where a check of its own fails; what the user reads then.

Nothing can be undone at that point: the process must end. A program that registers a handler gets
the reason as an error before that, and may leave in its own way.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from minitron_core.errors import Denied, MinitronError, OutOfResources

AbortHandler = Callable[[MinitronError], None]
Explanation = Callable[[str], MinitronError]

_handler: AbortHandler | None = None
_explanations: list[Explanation] = []
_kept: list[Any] = []  # llama.cpp holds the pointers for the life of the process
_ending = threading.Lock()  # several threads may meet the end at once; one reports it
# how llama.cpp, the system, and C++'s names of exceptions (of memory, of threads) say it
_MEMORY = ("alloc", "memory", "mem_buffer", "failed to map", "system_error", "start new thread")


def on_abort(handler: AbortHandler) -> None:
    """Call `handler` when llama.cpp is about to abort the process, from whichever thread it is.

    It takes effect when llama.cpp is started (`devices.start`).
    """
    global _handler
    _handler = handler


def are_handled() -> bool:
    """Whether a handler is set: an abort then ends the process with an explanation."""
    return _handler is not None


@contextmanager
def explaining(explain: Explanation) -> Iterator[None]:
    """Have `explain` say what an abort inside the block means, given llama.cpp's reason."""
    _explanations.append(explain)
    try:
        yield
    finally:
        _explanations.remove(explain)


def end(explain: Callable[[], MinitronError]) -> None:
    """Hand the handler the reason to stop and end the process; what C calls must not raise."""
    _ending.acquire()
    code = OutOfResources.exit_code  # where there is too little memory even to explain it
    try:
        error = explain()
        code = error.exit_code
        if _handler is not None:
            _handler(error)
    finally:
        os._exit(code)


def install(library: Any) -> None:
    """Have libggml-base report here if there is a handler; otherwise it prints a backtrace."""
    if _handler is None or _kept:
        return
    import ctypes  # here, so that setting a handler does not load it

    def aborted(message: bytes) -> None:
        end(lambda: explained(message.decode(errors="replace")))

    def terminate() -> None:
        end(lambda: explained(f"an uncaught exception, {_current_exception(library)}"))

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_char_p)(aborted))
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
    """Whether a reason tells of too little memory, or of too few threads."""
    return any(words in reason for words in _MEMORY)


def explained(message: str) -> MinitronError:
    """The error for what ggml_abort says: FILE:LINE: and a sentence or an assertion."""
    reason = message.split(": ", 1)[-1].strip()
    if "RPC server" in reason:
        return Denied(
            "an RPC server stopped answering, and its part of the model is lost",
            "restart it, then repeat this command",
        )
    if is_memory(reason):
        return no_memory()
    if _explanations:
        return _explanations[-1](reason)
    return MinitronError(f"llama.cpp aborted: {reason}", "-v shows its log")


def no_memory() -> OutOfResources:
    """The error for memory, or a thread, that the system refused."""
    return OutOfResources(
        "there is not enough memory",
        "close other programs, or choose a smaller --ctx or --batch, or fewer --threads",
    )
