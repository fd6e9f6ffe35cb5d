"""Commands that leave something behind, small: how they are begun, gone on with, and compared."""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helpers.support import EXAMPLES, RECORDED

TRACED = Path(__file__).with_name("traced.py")
JOB = """
[model]
source = "{examples}/nano-nemotron"
outtype = "f16"
[calibration]
text = ["calibration.txt"]
chunks = 4
ctx = 64
[quantize]
levels = ["Q4_0", "q5_0"]
[measure]
text = "held-out.txt"
ctx = 64
chunks = 4
[tasks]
hellaswag = "{recorded}/hellaswag.txt"
limit = 3
[output]
directory = "{folder}"
report = ["md", "csv", "json"]
"""
# what a run takes, and where it ran, is not part of the result
_NOT_COMPARED = re.compile(r'"(seconds|checksum|kept|resumed_after|path|outcome)": [^\n]*')


@dataclass(frozen=True)
class Material:
    """Files that the commands read: models, short texts, and what is measured already."""

    folder: Path
    model: Path
    level: Path

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.txt"

    @property
    def held_out(self) -> Path:
        return self.folder / "held-out.txt"

    @property
    def sensitivity(self) -> Path:
        return self.folder / "nano.sensitivity.json"


@dataclass(frozen=True)
class Command:
    """Words for an empty folder, what is added to go on, and whether the answer counts.

    Those whose last act is to name their file take --force: a file that is there is whole.
    """

    words: Callable[[Material, Path], list[object]]
    resume: tuple[str, ...] = ()
    answers: bool = False


def _quantize(m: Material, folder: Path, *more: object) -> list[object]:
    return ["quantize", m.model, *more, "-d", folder, "--threads", 2]


def _job(m: Material, folder: Path) -> list[object]:
    path = m.folder / f"{folder.name}.toml"
    path.write_text(JOB.format(examples=EXAMPLES, recorded=RECORDED, folder=folder))
    return ["run", path]


# all but a few tensors stay as they are: correcting errors takes long
_FEW = ("--tensor-type", "blk\\.[1-9]=f16", "--tensor-type", "ffn=f16")
_FEW += ("--output-tensor-type", "f16", "--token-embedding-type", "f16")
_SMALL = ("--ctx", 64, "--batch", 64, "--threads", 2)
_HELLASWAG = ("--task", "hellaswag", "--data", RECORDED / "hellaswag.txt", "--limit", 12)

COMMANDS: dict[str, Command] = {
    "convert": Command(
        lambda m, f: ["convert", EXAMPLES / "nano-nemotron", "-o", f / "nano-F16.gguf"],
        ("--force",),
    ),
    "imatrix": Command(
        lambda m, f: [
            *("imatrix", m.model, "-f", m.calibration, "-o", f / "m.gguf"),
            *(*_SMALL, "--batch", 128, "--chunks", 12, "--save-every", 1),
        ],
        ("--resume", "--force"),
    ),
    "quantize": Command(lambda m, f: _quantize(m, f, "Q4_0", "Q4_K_M", "Q5_0", "Q8_0")),
    "size": Command(
        lambda m, f: [
            *_quantize(m, f, "--bpw", 5, "--types", "q4_0,q5_0,q8_0"),
            *("--sensitivity", m.sensitivity, "--held-out", m.held_out, "--chunks", 1),
        ]
    ),
    "gptq": Command(lambda m, f: _quantize(m, f, "Q4_0", "--gptq", "--text", m.calibration, *_FEW)),
    "ppl": Command(
        lambda m, f: [
            *("ppl", m.level, m.model, "--reference", m.model, "-f", m.held_out, *_SMALL),
            *("--chunks", 8, "--resume", f / "rows.sqlite"),
        ],
        answers=True,
    ),
    "tasks": Command(
        lambda m, f: ["tasks", m.level, *_HELLASWAG, "--answers", f / "answers.jsonl", "--force"],
        answers=True,
    ),
    "run": Command(_job, ("--resume",)),
}

# those that only tell something, and one that leaves a file whose making takes long
READERS: dict[str, Callable[[Material, Path], list[object]]] = {
    "generate": lambda m, f: ["generate", m.level, "The old", "-n", 8, "--ctx", 64, "--threads", 2],
    "bench": lambda m, f: ["bench", m.level, "-p", 16, "-n", 4, "-r", 1, "--threads", 2],
    "inspect": lambda m, f: ["inspect", m.level, "--tensors"],
    "verify": lambda m, f: ["verify", EXAMPLES / "nano-nemotron", m.model],
    "sensitivity": lambda m, f: [
        *("sensitivity", m.model, "-f", m.calibration, "-o", f / "new.sensitivity.json"),
        *("--tokens", 64, "--ctx", 64, "--threads", 2),
    ],
}
DONE = {"verify": 1}  # the model lacks a key that our converter writes: see `nano_nemotron`


def words_of(name: str, material: Material, folder: Path) -> list[object]:
    """The words of any of them."""
    words = READERS[name] if name in READERS else COMMANDS[name].words
    return words(material, folder)


@dataclass(frozen=True)
class Whole:
    """What an uninterrupted run gives: its time in seconds, its files, and its answer."""

    seconds: float
    files: dict[str, str]
    answer: str


def start(
    words: list[object], trace: tuple[int, Path] | None = None, **environment: str
) -> "subprocess.Popen[str]":
    """A command in a process of its own, answering in JSON."""
    begin = ("-m", "minitron_cli") if trace is None else (TRACED, *trace)
    return subprocess.Popen(
        [sys.executable, *map(str, (*begin, *words, "--json", "-q"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment},
    )


def finish(words: list[object], trace: tuple[int, Path] | None = None) -> str:
    """Run a command to its end; its answer without what differs between runs."""
    process = start(words, trace)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return _comparable(out)


def whole_run(command: Command, material: Material, folder: Path) -> Whole:
    """An uninterrupted run, timed."""
    folder.mkdir()
    started = time.monotonic()
    answer = finish(command.words(material, folder))
    seconds = time.monotonic() - started
    files = results(folder)
    assert files or command.answers
    return Whole(seconds, files, answer)


def executed_lines(
    command: Command, material: Material, folder: Path
) -> tuple[list[str], list[int]]:
    """The lines of our code that a run executes, and their order as indexes into them."""
    folder.mkdir()
    file = folder.with_suffix(".lines")
    finish(command.words(material, folder), (-1, file))
    found = json.loads(file.read_text())
    return found["names"], found["seen"]


def limited(words: list[object], **limits: tuple[int, int]) -> tuple[int, str]:
    """The exit code and stderr of a command under the system's limits."""

    def prepare() -> None:
        for name, values in limits.items():
            resource.setrlimit(getattr(resource, name), values)

    done = subprocess.run(
        [sys.executable, "-m", "minitron_cli", *map(str, words)],
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"},
    )
    return done.returncode, done.stderr


def kill(process: "subprocess.Popen[str]", after: float) -> bool:
    """End a process the hard way after so many seconds; whether it was still at work."""
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


def results(folder: Path) -> dict[str, str]:
    """Files under their own names and their content, by hash where it is not text."""
    found = {}
    for path in folder.iterdir():
        if path.name.startswith(".") or ".sqlite" in path.name or path.is_dir():
            continue  # states, a database with its journal, whole for its readers, and scratch
        data = path.read_bytes()
        is_text = path.suffix in (".json", ".jsonl", ".md", ".csv", ".txt")
        found[path.name] = _comparable(data.decode()) if is_text else _hash(data)
    return found


def leftovers(folder: Path) -> set[str]:
    """Names of partial files, states and locks."""
    kept = {".minitron-run.json", ".minitron-measured.sqlite"}
    return {path.name for path in (*folder.glob(".*"), *folder.glob("*-journal"))} - kept


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _comparable(text: str) -> str:
    return re.sub(r"/\S*/", "", _NOT_COMPARED.sub("", text))
