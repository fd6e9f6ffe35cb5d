"""Signals arrive, wherever Python is when they come."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minitron_core import stop
from minitron_core.errors import OutOfResources
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_engine.process import interrupts


@pytest.mark.parametrize(
    ("name", "error"), [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "SystemExit")]
)
def test_end_cleanly_keeps_a_signal_inside_a_finalizer(name: str, error: str) -> None:
    code = f"""
        import signal, time
        from minitron_engine.process.interrupts import end_cleanly

        class Gone:
            def __del__(self):
                signal.raise_signal(signal.{name})

        end_cleanly()
        try:
            Gone()
            time.sleep(30)
        except BaseException as error:
            print(type(error).__name__)
    """
    words = (sys.executable, "-c", textwrap.dedent(code))
    ran = subprocess.run(words, capture_output=True, text=True, timeout=20)
    assert (ran.stdout.strip(), ran.stderr) == (error, "")


def test_deferred_survives_signals_inside_its_handler() -> None:
    code = """
        import signal, sys
        from minitron_engine.process import interrupts

        left = 20

        def press(frame, event, arg):
            # wherever a handler is, another signal comes
            global left
            if left:
                left -= 1
                signal.raise_signal(signal.SIGTERM)
            return press

        interrupts.end_cleanly()
        try:
            with interrupts.deferred():
                sys.settrace(press)
                signal.raise_signal(signal.SIGINT)
                sys.settrace(None)
                assert interrupts.pending()
        except BaseException as error:
            print(type(error).__name__, left < 20, interrupts.pending())
    """
    words = (sys.executable, "-c", textwrap.dedent(code))
    ran = subprocess.run(words, capture_output=True, text=True, timeout=20)
    assert (ran.stdout.strip(), ran.stderr) == ("SystemExit True False", "")


def press(after: float = 0.0) -> None:
    """Send Ctrl-C to this process, from a thread where it is to come later."""
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()


def until(something: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not something() and time.monotonic() < end:
        time.sleep(0.001)


def never() -> None:
    pytest.fail("the process would have ended")


def test_watched_answers_while_the_main_thread_is_inside_c() -> None:
    answers: list[float] = []
    with (
        pytest.raises(KeyboardInterrupt),
        interrupts.watched(lambda: answers.append(time.monotonic()), never),
    ):
        press(0.05)
        # one call that runs no handler of Python's
        hashlib.pbkdf2_hmac("sha256", b"minitron", b"salt", 400_000)
        returned = time.monotonic()
        assert stop.requested() and interrupts.pending()
        assert len(answers) == 1 and answers[0] < returned
    assert not stop.requested()


def test_watched_leaves_at_the_second_press_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_ONE_PRESS_SECONDS", 0.0)
    said: list[str] = []
    with interrupts.watched(lambda: said.append("stopping"), lambda: said.append("left")):
        for expected in (["stopping"], ["stopping", "left"]):
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(20)
            until(lambda: len(said) == len(expected))  # noqa: B023
            assert said == expected


def test_watched_counts_a_press_that_was_held_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_ONE_PRESS_SECONDS", 0.0)
    answers: list[int] = []
    with interrupts.watched(lambda: answers.append(1), never):
        with pytest.raises(KeyboardInterrupt), interrupts.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            until(interrupts.pending)
        # written after it, so read after it
        os.kill(os.getpid(), signal.SIGWINCH)
    assert answers == [1]


def test_decode_ends_after_a_request_to_stop(nano_llama: Path) -> None:
    batch = Batch(64)
    batch.add(np.arange(64, dtype=np.int32), 0, 0, np.arange(64) == 63)
    with (
        open_model(ModelSettings(nano_llama)) as model,
        open_context(model, ContextSettings(64, 64)) as context,
    ):
        context.decode(batch)
        expected = context.logits(1).copy()
        context.clear()
        stop.request()
        try:
            with pytest.raises(KeyboardInterrupt):
                context.decode(batch)
        finally:
            stop.clear()
        context.clear()
        context.decode(batch)
        assert np.array_equal(context.logits(1), expected)


# a thread is started with so many KiB of address space left
START = """
import ctypes, mmap, resource, sys, threading
from minitron_engine.process import aborts, address_space, interrupts
aborts.on_abort(lambda error: None)
address_space.reserve()
interrupts.end_cleanly()
threading.stack_size(32 << 10)
thread = threading.Thread(target=len, args=((),))
room = int(sys.argv[1]) << 10
memory = ctypes.CDLL(None)
memory.mmap.restype = ctypes.c_size_t
anonymous = [ctypes.c_int(number) for number in (3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)]
def mapped(size):
    return memory.mmap(None, ctypes.c_size_t(size), *anonymous)
used = int(open("/proc/self/statm").read().split()[0]) * mmap.PAGESIZE
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
kept = mapped(room) if room else 0
size = 32 << 20
while size >= mmap.PAGESIZE:
    if mapped(size) == 2**64 - 1:
        size //= 2
if room:
    memory.munmap(ctypes.c_size_t(kept), ctypes.c_size_t(room))
try:
    thread.start()
except RuntimeError:
    sys.exit(3)
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of address space")
def test_end_cleanly_ends_the_process_where_a_thread_has_no_memory_to_begin() -> None:
    codes = [
        subprocess.run(
            [sys.executable, "-c", START, str(room)], timeout=30, capture_output=True, check=False
        ).returncode
        for room in range(0, 128, 4)
    ]
    # 3: the system has none for it; 6: Python has none in it; never waiting for ever
    assert {*codes} <= {0, 3, OutOfResources.exit_code} and OutOfResources.exit_code in codes
