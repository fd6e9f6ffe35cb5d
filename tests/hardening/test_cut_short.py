"""A model that somebody cuts short in place while a command has it open and mapped."""

import json
import os
import pty
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from hardening import workshop
from hardening.workshop import COMMANDS, DONE, READERS, Material, Whole
from helpers.support import Ran, fails

CUT = Path(__file__).with_name("cut.py")


def copy_of(material: Material, folder: Path) -> Material:
    """The material, to be spoilt."""
    folder = shutil.copytree(material.folder, folder / "material")
    return Material(folder, folder / material.model.name, folder / material.level.name)


@pytest.fixture
def copied(material: Material, tmp_path: Path) -> Material:
    return copy_of(material, tmp_path)


def started(file: Path, function: str, times: int, words: list[object]) -> subprocess.Popen[str]:
    """A command whose file is cut at one of the calls of a function: see `cut`."""
    return subprocess.Popen(
        [sys.executable, *map(str, (CUT, file, function, times, *words))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(file: Path, function: str, times: int, words: list[object]) -> tuple[int, str]:
    process = started(file, function, times, words)
    _, err = process.communicate(timeout=300)
    return process.returncode, err


# in llama.cpp's threads; in ours, while they encode; in Python itself; in a child of ours
SOME = [
    ("generate", "Context.decode_struct", 2),
    ("quantize", "_slabs", 5),
    ("verify", "Gguf.data", 3),
    ("quantize", "dry_runs", 1),
    pytest.param("sensitivity", "Context.decode_struct", 2, marks=pytest.mark.harden),
]


@pytest.mark.parametrize(("name", "function", "times"), SOME)
def test_some_commands_survive_a_cut_file(
    name: str, function: str, times: int, copied: Material, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    file = copied.level if name == "generate" else copied.model
    code, err = ended(file, function, times, workshop.words_of(name, copied, folder))
    fails(Ran(code, "", err), 8, str(file))
    assert workshop.results(folder) == {}


def test_progress_leaves_the_terminal_as_it_was(copied: Material, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    # with -v progress is shown from the beginning
    words = [*workshop.words_of("quantize", copied, tmp_path / "out"), "-v"]
    process = subprocess.Popen(
        [sys.executable, *map(str, (CUT, copied.model, "_slabs", 9, *words))],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "MINITRON_PROGRESS": "auto"},
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # what a terminal gives whose other end is closed
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    assert process.wait() == 8, shown
    before, _, after = shown.rpartition(b"error:")
    assert before.rfind(b"\x1b[?25h") > before.rfind(b"\x1b[?25l") >= 0
    assert b"\x1b[?25l" not in after


@pytest.fixture
def server(copied: Material) -> Iterator[tuple[Material, subprocess.Popen[str], str]]:
    """A server whose model is cut at its third decode."""
    words = ["serve", copied.level, "--port", 0, "--ctx", 128, "--threads", 2, "-q"]
    process = started(copied.level, "Context.decode_struct", 3, words)
    assert process.stdout is not None
    yield copied, process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_serve_survives_a_cut_file(server: tuple[Material, subprocess.Popen[str], str]) -> None:
    copied, process, url = server
    question = json.dumps({"prompt": "The old", "max_tokens": 32}).encode()
    asked = Request(f"{url}/completions", question, {"Content-Type": "application/json"})
    with pytest.raises(ConnectionError):
        urlopen(asked, timeout=60).read()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 8, err
    assert f"error: {copied.level} was cut short" in err and "Traceback" not in err


# run makes its model by itself: it is cut where it is read
OF_RUN = ("Context.decode_struct", "_slabs", "_encode_run")
# the source of one is not such a file, and the other takes minutes while its calls are counted
NOT_DRAWN = {"convert", "sensitivity"}
ROUNDS = 6


@pytest.fixture(scope="session")
def calls(
    material: Material, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, int]]:
    """How often a command calls each function of ours."""
    folder = tmp_path_factory.mktemp("calls")

    def count(name: str) -> dict[str, int]:
        file = folder / f"{name}.json"
        if not file.exists():
            place = folder / name
            place.mkdir()
            words = [*workshop.words_of(name, material, place), "-q"]
            code, err = ended(file, "", 0, words)
            assert code == DONE.get(name, 0), err
        counts: dict[str, int] = json.loads(file.read_text())
        return counts

    return count


@pytest.mark.harden
@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("name", sorted({*COMMANDS, *READERS} - NOT_DRAWN))
def test_every_command_survives_a_cut_file(
    name: str,
    seed: int,
    calls: Callable[[str], dict[str, int]],
    whole: Callable[[str], Whole],
    material: Material,
    tmp_path: Path,
) -> None:
    expected = whole(name).files if name in COMMANDS else {}
    copied = copy_of(material, tmp_path)  # with what the whole run had made for itself
    draw = random.Random(f"cut {name} {seed}")
    counts = calls(name)
    function = draw.choice(OF_RUN if name == "run" else sorted(counts))
    times = draw.randint(1, counts[function])
    folder = tmp_path / "job"
    folder.mkdir()
    words = workshop.words_of(name, copied, folder)
    # an importance matrix names its text
    words = [material.calibration if word == copied.calibration else word for word in words]
    given = [path for path in (copied.model, copied.level) if path in words]
    file = draw.choice(given or [folder / "Nano-Nemotron-5.0M-F16.gguf"])
    code, err = ended(file, function, times, [*words, "-q"])
    where = f"{function}, call {times}"
    done = code == DONE.get(name, 0)
    if not done:
        fails(Ran(code, "", err), 8)
    if name in COMMANDS:
        found = workshop.results(folder)
        found.pop(file.name, None)  # a run's own
        assert found.items() <= expected.items(), where
    print(f"\nCUT {name} {seed} {'was done' if done else 'cut'} at {where}")  # noqa: T201
