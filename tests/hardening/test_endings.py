"""How a command ends when the world around it does: signals, terminals, pipes, full logs."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardening import workshop
from hardening.workshop import COMMANDS, Material
from helpers.support import EXAMPLES

HELD_OUT = EXAMPLES / "held-out.txt"
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MINITRON = (sys.executable, "-m", "minitron_cli")


def quiet(err: str) -> bool:
    """Whether nothing of Python's own is shown."""
    return "Traceback" not in err and "Exception" not in err and "Error" not in err


def until(something: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not something() and time.monotonic() < end:
        time.sleep(0.005)


def end(process: "subprocess.Popen[str]", number: int) -> tuple[int, str]:
    """Send a signal; the exit code and what was said."""
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


# enough that a signal always meets it at work
def _long(material: Material, folder: Path) -> list[object]:
    return ["quantize", material.model, "IQ4_XS", "Q3_K_M", "Q5_K_S", "-d", folder, "--threads", 1]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_quantize_so_that_it_can_go_on(
    number: signal.Signals, material: Material, tmp_path: Path
) -> None:
    words = _long(material, tmp_path)
    process = workshop.start(words)
    until(lambda: list(tmp_path.glob(".*.partial")))
    code, err = end(process, number)
    assert (code, err) == (130, "")
    left = workshop.leftovers(tmp_path)
    assert not list(tmp_path.glob("*.gguf")) and ".nano.quantize.lock" not in left
    assert ".nano.quantize.journal" in left, "what was done is known"


@pytest.mark.harden
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_signal_ends_every_command(
    name: str, share: float, number: signal.Signals, whole: Any, material: Material, tmp_path: Path
) -> None:
    command, expected = COMMANDS[name], whole(name)
    folder = tmp_path / "job"
    folder.mkdir()
    words = command.words(material, folder)
    process = workshop.start(words)
    time.sleep(share * expected.seconds)
    code, err = end(process, number)
    # before Python listens a signal ends it at once; after the last line it is too late
    assert code in (130, 0, -number) and quiet(err), err
    assert workshop.results(folder).items() <= expected.files.items()
    answer = workshop.finish([*words, *command.resume])
    assert workshop.results(folder) == expected.files
    assert workshop.leftovers(folder) == set()
    if command.answers:
        assert answer == expected.answer
    print(f"\nENDED {name} {number.name} after {share} of its time: {code}")  # noqa: T201


def readers(material: Material) -> dict[str, list[object]]:
    """Commands whose answer somebody may stop reading."""
    small = ("--ctx", 64, "--chunks", 2)
    return {
        "ppl": ["ppl", material.level, "-f", HELD_OUT, *small],
        "inspect": ["inspect", material.level, "--tensors"],
        "generate": ["generate", material.level, "The", "-n", 64],
        "advise": ["advise", material.level.parent, "--vram", "1G"],
        "help": ["quantize", "--help"],
        "bench": ["bench", material.level, "-p", 8, "-n", 4, "-r", 1],
        "doctor": ["doctor"],
        "version": ["--version"],
    }


def run(words: list[object], **streams: Any) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [*MINITRON, *map(str, words)]
    return subprocess.run(command, text=True, timeout=120, env=environment, **streams)


SOME = ("inspect", "generate")
MOST = [
    pytest.param(name, marks=() if name in SOME else pytest.mark.harden)
    for name in ("ppl", "inspect", "generate", "advise", "help", "bench", "doctor", "version")
]


@pytest.mark.parametrize("name", MOST)
def test_a_pipe_that_breaks(name: str, material: Material) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(readers(material)[name], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert quiet(done.stderr), done.stderr
    assert done.returncode in (0, 1)


@pytest.mark.parametrize("name", MOST)
def test_a_full_disk_behind_stdout(name: str, material: Material) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(readers(material)[name], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 6 and quiet(done.stderr), done.stderr
    assert "No space left" in done.stderr


@pytest.mark.harden
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_is_closed(stream: str, material: Material) -> None:
    shell = ">&-" if stream == "stdout" else "2>&-"
    for words in readers(material).values():
        line = " ".join(map(str, (*MINITRON, *words, shell)))
        done = subprocess.run(line, shell=True, capture_output=True, text=True)
        assert done.returncode == 0 and quiet(done.stderr), (line, done.stderr)


def test_a_log_that_cannot_be_written_ends_nothing(material: Material) -> None:
    words = [*readers(material)["ppl"], "-v"]
    with Path("/dev/full").open("w") as full:
        done = run(words, stdout=subprocess.PIPE, stderr=full)
    assert done.returncode == 0 and done.stdout.startswith("PPL = ")


def on_a_terminal(words: list[object], *, hang_up: bool) -> tuple["subprocess.Popen[bytes]", int]:
    """A command whose stdin, stdout and stderr are a terminal, and the terminal's other end."""
    ours, theirs = pty.openpty()

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL if hang_up else signal.SIG_IGN)

    process = subprocess.Popen(
        [*MINITRON, *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=prepare,
    )
    os.close(theirs)
    return process, ours


@pytest.mark.harden
@pytest.mark.parametrize("hang_up", [True, False], ids=["hung-up", "nohup"])
def test_a_terminal_that_closes(hang_up: bool, material: Material, tmp_path: Path) -> None:
    process, terminal = on_a_terminal(_long(material, tmp_path), hang_up=hang_up)
    until(lambda: list(tmp_path.glob(".*.partial")))
    if hang_up:
        process.send_signal(signal.SIGHUP)  # as the system does to a session's leader
    os.close(terminal)
    code = process.wait(60)
    made = sorted(path.name for path in tmp_path.glob("*.gguf"))
    if hang_up:
        assert code == 130 and made == []
        assert ".nano.quantize.journal" in workshop.leftovers(tmp_path)
    else:
        # its progress has no reader any more, and its work is done all the same
        assert len(made) == 3
        assert workshop.leftovers(tmp_path) == set()
