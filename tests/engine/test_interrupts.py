"""Signals arrive, wherever Python is when they come."""

import subprocess
import sys
import textwrap

import pytest


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
