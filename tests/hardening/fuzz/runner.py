"""Runs inputs through targets in processes of their own: a crash is a finding, not an end.

python -m hardening.fuzz.runner --count 200000 TARGET…     (with tests/ on PYTHONPATH)
prints one JSON object per target: counts, times, and every kind of finding with an index that
shows it again: python -m hardening.fuzz.runner --show INDEX TARGET.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from hardening.fuzz.guard import SPARE, Guard, limit_memory, peak_memory
from hardening.fuzz.mutate import LARGEST
from helpers.support import PYTHON_REPR
from minitron_cli.errors import explain
from minitron_core.errors import MinitronError

SEED = 1
TRYING = b"\1"
STALLED = 30.0  # seconds of the processor in one input: what does not even heed signals is ended
ASLEEP = 600.0  # seconds in one input without an end, on a machine however busy
LONGEST_MESSAGE = 2000
OURS = (MinitronError, MinitronError)
SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Target:
    """A parser and how its inputs are made.

    seeds: sound files. mutate: one file damaged. prepare: given a folder, what opens the bytes of
    an input. spare: bytes of memory it may take beside twice the file's size, None for no limit
    (where llama.cpp works). sound: whether seeds must pass. guarded: whether processes, sockets and
    late imports are findings, too.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes]
    prepare: Callable[[Path], Callable[[bytes], object]]
    spare: int | None = SPARE
    seconds: float = 2.0
    imports: tuple[str, ...] = ()
    sound: bool = True
    guarded: bool = True


@dataclass
class Outcome:
    """What became of a target's inputs."""

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    findings: dict[str, list[int]] = field(default_factory=dict)
    cpu_s: float = 0.0
    slowest_ms: float = 0.0
    left: int = 0
    exit_codes: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, index: int) -> None:
        """One more finding; of each kind the first few indices are kept."""
        self.findings.setdefault(what, [])
        if len(self.findings[what]) < 5:
            self.findings[what].append(index)


def make_input(target: Target, seeds: list[bytes], index: int) -> bytes:
    """The input of an index, the same at every run."""
    choose = Random(f"{target.name}/{SEED}/{index}")
    return target.mutate(choose.choice(seeds), choose)[:LARGEST]


def run(target: Target, indices: range) -> Outcome:
    """All inputs of a target; in a new process behind one that ended the last."""
    outcome = Outcome(target.name)
    with tempfile.TemporaryDirectory(dir=SHARED if SHARED.is_dir() else None) as place:
        at = indices.start
        while at < indices.stop:
            at = _in_child(target, range(at, indices.stop), Path(place), outcome)
    outcome.inputs = len(indices)
    return outcome


def _in_child(target: Target, indices: range, folder: Path, outcome: Outcome) -> int:
    """Try inputs in a child; the index to go on with."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    shared[:8] = indices.start.to_bytes(8, "little")
    report = folder / "outcome.json"
    report.write_text(json.dumps(asdict(outcome)))
    child = os.fork()
    if not child:
        _be_child(target, indices, folder, shared, report)
    status = _wait(child, shared)
    told = json.loads(report.read_text())
    outcome.__dict__.update(told)
    if status == 0:
        return indices.stop
    index = int.from_bytes(shared[:8], "little")
    if not os.WIFSIGNALED(status) and shared[8:9] == TRYING:
        outcome.refused += 1  # llama.cpp gave up, and the command left with one line
        outcome.left += 1
        return index + 1
    if not os.WIFSIGNALED(status):
        raise RuntimeError(f"{target.name}: the harness failed, see above")
    outcome.add(f"the process ended: {signal.Signals(os.WTERMSIG(status)).name}", index)
    return index + 1


def _wait(child: int, shared: mmap.mmap) -> int:
    last, before, since = shared[:8], _cpu_seconds(child), time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        used, waited = _cpu_seconds(child) - before, time.monotonic() - since
        if shared[:8] != last:
            last, before, since = shared[:8], _cpu_seconds(child), time.monotonic()
        elif used > STALLED or waited > ASLEEP:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.05)


def _cpu_seconds(process: int) -> float:
    """The processor's time of a process and of those that it has waited for."""
    values = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, values[11:15])) / os.sysconf("SC_CLK_TCK")


def _be_child(
    target: Target, indices: range, folder: Path, shared: mmap.mmap, report: Path
) -> None:
    code = 1
    try:
        outcome = Outcome(**json.loads(report.read_text()))
        _Trial(target, folder, outcome).all(indices, shared, report)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Trial:
    """A target's parser in this process, and what comes of its inputs."""

    def __init__(self, target: Target, folder: Path, outcome: Outcome) -> None:
        self.target, self.outcome = target, outcome
        self.guard = Guard(folder, target.imports)
        self.seeds = target.seeds()
        inputs = folder / "in"
        inputs.mkdir(exist_ok=True)
        self.parse = target.prepare(inputs)
        for seed in self.seeds:  # loads what is loaded late, too
            try:
                self.parse(seed)
            except OURS:
                if target.sound:
                    raise
        if target.spare is not None:
            limit_memory(target.spare + 2 * max(map(len, self.seeds)))
        self.peak = peak_memory()

    def all(self, indices: range, shared: mmap.mmap, report: Path) -> None:
        """Try every input, and leave what is known where the parent finds it."""
        saved = time.monotonic()
        for index in indices:
            shared[:8] = index.to_bytes(8, "little")
            data = make_input(self.target, self.seeds, index)
            before = resource.getrusage(resource.RUSAGE_SELF)
            shared[8:9] = TRYING
            self.one(index, data)
            shared[8:9] = b"\0"
            after = resource.getrusage(resource.RUSAGE_SELF)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            self.outcome.cpu_s += seconds
            self.outcome.slowest_ms = max(self.outcome.slowest_ms, 1000 * seconds)
            self.check_peak(index, len(data))
            if self.target.spare is None or time.monotonic() - saved > 1:
                saved = self.save(report)
        self.save(report)

    def save(self, report: Path) -> float:
        """Write the outcome so far; the time of it."""
        report.write_text(json.dumps(asdict(self.outcome)))
        return time.monotonic()

    def one(self, index: int, data: bytes) -> None:
        """Try one input."""
        outcome = self.outcome
        try:
            with self.guard.watching(self.target.seconds, self.target.guarded):
                self.parse(data)
            outcome.accepted += 1
        except OURS as error:
            outcome.refused += 1
            code = str(error.exit_code)
            outcome.exit_codes[code] = outcome.exit_codes.get(code, 0) + 1
            for fault in faults_of(error):
                outcome.add(f"{fault} ({place_of(error)})", index)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            outcome.add(f"{type(error).__name__} at {place_of(error)}: {error!s:.150}", index)
        for what in dict.fromkeys(self.guard.seen):
            outcome.add(what, index)

    def check_peak(self, index: int, size: int) -> None:
        """Memory really filled, beside what RLIMIT_AS bounds."""
        peak = peak_memory()
        if self.target.spare is not None and peak > self.peak + 2 * size + self.target.spare:
            self.outcome.add("held more than 2 × the file + 64 MiB", index)
        self.peak = max(self.peak, peak) if peak > self.peak + (32 << 20) else self.peak


def faults_of(error: BaseException) -> Iterable[str]:
    """What is wrong with an error's message, which should be one clear sentence."""
    failure = explain(error)
    text = failure.message if failure else ""
    if not text or failure.hint == text:
        yield "an error without words"
    if PYTHON_REPR.search(text):
        yield f"a value as Python writes it: {text:.200}"
    if not text.isprintable() or "Traceback" in text or not failure.hint.isprintable():
        yield "an error that is not one printable line"
    if len(text) > LONGEST_MESSAGE:
        yield f"an error of more than {LONGEST_MESSAGE} characters"
    if isinstance(error.__cause__, MemoryError):
        yield "took more memory than it may"


def place_of(error: BaseException) -> str:
    """Where in our code an exception passed last."""
    frames = traceback.extract_tb(error.__traceback__)
    inner = frames[-1] if frames else None
    ours = [frame for frame in frames if "minitron_" in frame.filename]
    frame = ours[-1] if ours else inner
    return f"{Path(frame.filename).name}:{frame.lineno}" if frame else "nowhere"


def show(target: Target, index: int) -> None:
    """The input of an index and what happens, with a traceback."""
    data = make_input(target, target.seeds(), index)
    sys.stdout.write(f"{data[:3000]!r}\n{len(data)} bytes\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as place:
        sys.stdout.write(f"accepted: {target.prepare(Path(place))(data)!r:.300}\n")


def main() -> None:
    """The command line."""
    from hardening.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--show", type=int)
    asked: Any = parser.parse_args()
    for name in asked.targets or TARGETS:
        if asked.show is not None:
            show(TARGETS[name], asked.show)
            continue
        outcome = run(TARGETS[name], range(asked.first, asked.first + asked.count))
        sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
