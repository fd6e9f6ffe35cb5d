"""Kill a quantization before a line of code that it executes, look, and let it go on; many times.

    python kill_rounds.py SOURCE FOLDER ROUNDS SEED

Each moment is a random line of our code at a random one of the times that it is executed, so that
finishing and writing down, which are short, are hit as often as encoding. Every job is a process
of its own, ended by SIGKILL. Prints a JSON list, the uninterrupted job first: where it was killed,
what the folder held then, and what it held when the job had been run again.
"""

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hardening.traced import Lines
from minitron_quant.levels import parse_levels
from minitron_quant.quantize import encode, level_files
from minitron_quant.quantize.prepare import QuantizeJob, QuantizeSettings, prepare
from minitron_quant.quantize.run import run

LEVELS = ("Q4_0", "Q4_K_M", "Q8_0")


def in_a_child(batch: QuantizeJob, fatal: int | None = None) -> list[str]:
    """Run the job in a process of its own; the lines that it executed.

    fatal: the line at which it is killed, -1 for none; without it no lines are counted.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lines = Lines(-1 if fatal is None else fatal)
        sys.settrace(None if fatal is None else lines)
        try:
            list(run(batch))
            sys.settrace(None)
            with os.fdopen(writer, "w") as pipe:
                names = list(lines.names)
                json.dump([names[number] for number in lines.seen], pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else []


def moments(executed: list[str], count: int, seed: int) -> list[int]:
    """Positions in what was executed: random lines, each at a random one of its times."""
    times: dict[str, list[int]] = {}
    for position, line in enumerate(executed):
        times.setdefault(line, []).append(position)
    draw = random.Random(seed)
    return [draw.choice(times[draw.choice(sorted(times))]) for _ in range(count)]


def contents(folder: Path) -> dict[str, str]:
    """The files of a folder and their hashes."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*")}


def rounds(source: Path, folder: Path, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """An uninterrupted job first, then the killed ones."""
    encode.SLAB_ELEMENTS = 1 << 16
    level_files._COMMIT_SECONDS = 0.01
    batch = prepare(QuantizeSettings(source, tuple(parse_levels(LEVELS)), folder, threads=2))
    executed = in_a_child(batch, fatal=-1)
    yield {"line": "", "killed": {}, "resumed": contents(folder)}
    for moment in moments(executed, count, seed):
        shutil.rmtree(folder)
        in_a_child(batch, moment)
        killed = contents(folder)
        in_a_child(batch)
        yield {"line": executed[moment], "killed": killed, "resumed": contents(folder)}


if __name__ == "__main__":
    results = rounds(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    json.dump(list(results), sys.stdout)
