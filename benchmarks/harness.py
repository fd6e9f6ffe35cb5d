"""Run two commands in turn, A B A B, and compare wall time, CPU time and peak memory.

Standard library only, and little of it: a child's peak memory starts from that of the process
that made it, so this one stays small.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FAILED, USAGE = 1, 2
SIDES = "minitron", "llama.cpp"
Command = Sequence[str | Path | int]
# an installed package has its bytecode; without it every start would compile the sources
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


class NotGiven(Exception):
    """Something to compare with is not on this machine, or was not named."""


@dataclass(frozen=True)
class Run:
    """One run of one side; times in seconds, memory of the largest process in MiB."""

    wall: float
    cpu: float
    peak_mib: float
    output: str


@dataclass(frozen=True)
class Case:
    """One comparison; a side is one command or several that run one after another.

    `values` reads numbers worth showing (a perplexity, tokens per second) from a side's output.
    runs: of each side, where --runs would take too long.
    """

    name: str
    ours: Sequence[Command]
    theirs: Sequence[Command]
    values: Callable[[str], dict[str, float]] = field(default=lambda output: {})
    runs: int | None = None


@dataclass(frozen=True)
class Side:
    """Medians over the runs of a side, and every wall time."""

    command: str
    wall: float
    cpu: float
    peak_mib: float
    walls: list[float]
    values: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """A case measured; `ratio` is our wall time over theirs, so below 1 is faster.

    in_pairs: the median of the same ratio of two runs, one right after the other: a machine that
    slows down for minutes does less to it.
    """

    name: str
    ratio: float
    in_pairs: float
    ours: Side
    theirs: Side


def run_once(commands: Sequence[Command]) -> Run:
    """Run commands one after another; RuntimeError with the last words of one that fails."""
    wall = cpu = peak = 0.0
    output = ""
    for command in commands:
        with tempfile.TemporaryFile() as captured:
            started = time.perf_counter()
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=captured,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall += time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            captured.seek(0)
            text = captured.read().decode(errors="replace")
        if process.returncode:
            raise RuntimeError(f"{shown(command)} gave {process.returncode}\n{text[-2000:]}")
        cpu += usage.ru_utime + usage.ru_stime
        # macOS counts bytes, Linux KiB
        peak = max(peak, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
        output += text
    return Run(wall, cpu, peak, output)


def shown(command: Command) -> str:
    """A command line in which every path is only a name."""
    words = (str(word) for word in command)
    return " ".join(Path(word).name if os.sep in word else word for word in words)


def compare(case: Case, runs: int, warm_ups: int = 1) -> Comparison:
    """Warm both sides up, then run them in turn; medians of `runs` runs each."""
    sides = (case.ours, case.theirs)
    for side in sides * warm_ups:
        run_once(side)
    taken: tuple[list[Run], list[Run]] = ([], [])
    for number in range(runs):
        for side, results in zip(sides, taken, strict=True):
            note(f"{case.name}: run {number + 1} of {runs}")
            results.append(run_once(side))
    ours, theirs = (
        _summary(side, results, case.values) for side, results in zip(sides, taken, strict=True)
    )
    pairs = [one.wall / other.wall for one, other in zip(*taken, strict=True)]
    return Comparison(case.name, ours.wall / theirs.wall, statistics.median(pairs), ours, theirs)


def _summary(
    commands: Sequence[Command], runs: list[Run], values: Callable[[str], dict[str, float]]
) -> Side:
    found = [values(run.output) for run in runs]
    first = shown(commands[0])
    more = f" and {len(commands) - 1} more" if len(commands) > 1 else ""
    return Side(
        command=first + more,
        wall=statistics.median(run.wall for run in runs),
        cpu=statistics.median(run.cpu for run in runs),
        peak_mib=statistics.median(run.peak_mib for run in runs),
        walls=[run.wall for run in runs],
        values={
            key: statistics.median(each[key] for each in found if key in each)
            for key in dict.fromkeys(key for each in found for key in each)
        },
    )


def note(text: str) -> None:
    """Say what is going on, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def table_of(cases: Sequence[dict[str, Any]], sides: Sequence[str] = SIDES) -> str:
    """Comparisons, as the JSON has them, as a Markdown table. sides: what is compared."""
    columns = ("wall", "s", ".2f"), ("cpu", "CPU s", ".2f"), ("peak_mib", "MiB", ".0f")
    names = [f"{side} {unit}" for _, unit, _ in columns for side in sides]
    lines = [
        f"| case | runs | ratio | in pairs | CPU ratio | {' | '.join(names)} "
        f"| values ({'; '.join(sides)}) |",
        f"|---|{'---:|' * (len(names) + 4)}---|",
    ]
    for case in cases:
        measured = case["ours"], case["theirs"]
        cells = [f"{side[key]:{form}}" for key, _, form in columns for side in measured]
        values = [
            f"{key} {_number(value)}; {_number(case['theirs']['values'].get(key))}"
            for key, value in case["ours"]["values"].items()
        ]
        ratios = case["ratio"], case["in_pairs"], measured[0]["cpu"] / measured[1]["cpu"]
        first = [
            case["name"],
            str(len(measured[0]["walls"])),
            *(f"{ratio:.2f}" for ratio in ratios),
        ]
        lines.append(f"| {' | '.join([*first, *cells, ', '.join(values)])} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4f}" if value < 1000 else f"{value:.0f}"


def machine() -> dict[str, Any]:
    """The machine, how busy it was in the last 15 minutes, and the date; without its name."""
    cpuinfo = Path("/proc/cpuinfo")
    facts = cpuinfo.read_text() if cpuinfo.exists() else ""
    names = re.findall(r"model name\s*: (.+)", facts)
    flags = re.findall(r"(?:^flags|Features)\s*: (.+)", facts, re.M)
    chosen = re.findall(r"\b(?:avx|fma|f16c|bmi|sve|asimd)\w*", flags[0]) if flags else []
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "instructions": " ".join(chosen),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load average": round(os.getloadavg()[-1], 1),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "date": datetime.now(UTC).date().isoformat(),
    }


@dataclass(frozen=True)
class Setup:
    """What the options name: programs of both sides, threads, runs, model and a folder to use."""

    arguments: argparse.Namespace
    folder: Path

    @property
    def threads(self) -> int:
        """Threads of both sides."""
        return int(self.arguments.threads)

    def minitron(self, *words: str | Path | int) -> Command:
        """A command line of ours."""
        return (minitron_path(self.arguments), *words)

    @property
    def tools(self) -> Path:
        """The folder of llama.cpp's programs; NotGiven where there is none."""
        folder = self.arguments.tools
        if not folder or not Path(folder).is_dir():
            raise NotGiven("give the folder of llama.cpp's programs as --tools or LLAMA_CPP_TOOLS")
        return Path(folder)

    def tool(self, name: str, *words: str | Path | int) -> Command:
        """A command line of one of llama.cpp's programs; NotGiven where it is not there."""
        if not (self.tools / name).exists():
            raise NotGiven(f"there is no {name} in the folder given as --tools or LLAMA_CPP_TOOLS")
        return (self.tools / name, *words)

    def inputs(self, text: Path) -> "list[Input]":
        """The model with a text and --chunks of it, and what --also names."""
        given = self.arguments
        also = [Input(Path(m), Path(t), int(n)) for m, t, n in given.also]
        return [Input(self.model(), Path(given.text or text), given.chunks), *also]

    def model(self) -> Path:
        """The GGUF file to work on: --model, or the example model converted to f16."""
        if self.arguments.model:
            return Path(self.arguments.model)
        target = self.folder / "nano-llama-F16.gguf"
        # no use in converting for a comparison that cannot be made
        if self.tools and not target.exists():
            source = EXAMPLES / "nano-llama"
            run_once([self.minitron("convert", source, "-o", target, "--outtype", "f16")])
        return target


@dataclass(frozen=True)
class Input:
    """A model and chunks of 512 tokens of a text to run through it; -1: all of them."""

    model: Path
    text: Path
    chunks: int

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.model.stem}, {self.chunks if self.chunks > 0 else 'all'} chunks"

    @property
    def options(self) -> Command:
        """The options that name text and chunks, the same for both sides."""
        return ("-f", self.text, *(("--chunks", self.chunks) if self.chunks > 0 else ()))


def text_options(parser: argparse.ArgumentParser) -> None:
    """The options that `Setup.inputs` reads."""
    parser.add_argument("--text", help="a text (default: that of the examples)")
    parser.add_argument(
        "--chunks", type=int, default=-1, help="chunks of 512 tokens (default: all)"
    )
    also = ("MODEL", "TEXT", "CHUNKS")
    parser.add_argument(
        "--also", nargs=3, metavar=also, action="append", default=[], help="another model as well"
    )


def minitron_path(arguments: argparse.Namespace) -> Path:
    """The command to measure: --minitron, or the one beside this Python, or the one on the PATH."""
    beside = Path(sys.executable).with_name("minitron")
    found = arguments.minitron or (beside if beside.exists() else shutil.which("minitron"))
    if not found:
        raise NotGiven("minitron is not installed here: give its path as --minitron EXE")
    return Path(found)


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    tools = os.environ.get("LLAMA_CPP_TOOLS")
    parser.add_argument("--tools", default=tools, metavar="DIR", help="llama.cpp's programs")
    parser.add_argument("--minitron", metavar="EXE", help="the command to measure")
    parser.add_argument("--model", metavar="FILE", help="a GGUF file (default: nano-llama, f16)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side that count")
    parser.add_argument("--only", metavar="TEXT", help="cases with this text in their name")
    parser.add_argument("--warm-ups", type=int, default=1, help="runs of each side before those")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    return parser


def workspace() -> AbstractContextManager[str]:
    """A temporary folder for what both sides write."""
    return tempfile.TemporaryDirectory(prefix="minitron-benchmark-")


def main(parser: argparse.ArgumentParser, cases: Callable[[Setup], Sequence[Case]]) -> int:
    """Compare each case, print the table, write --json; the exit status, 1 where a case failed."""
    arguments = parser.parse_args()
    name, status = Path(sys.argv[0]).name, 0
    comparisons = []
    with workspace() as temporary:
        # a name that is the same in every run, since commands are shown with the names in them
        folder = Path(temporary) / "out"
        folder.mkdir()
        try:
            planned = cases(Setup(arguments, folder))
        except (NotGiven, RuntimeError) as reason:
            print(f"{name}: {reason}", file=sys.stderr)
            return USAGE if isinstance(reason, NotGiven) else FAILED
        for case in planned:
            if arguments.only and arguments.only not in case.name:
                continue
            try:
                comparisons.append(compare(case, case.runs or arguments.runs, arguments.warm_ups))
            except RuntimeError as failure:
                print(f"{name}: {case.name}: {failure}", file=sys.stderr)
                status = FAILED
    note("")
    rows = [asdict(row) for row in comparisons]
    print(table_of(rows))
    if arguments.json:
        document = {"machine": machine(), "threads": arguments.threads, "cases": rows}
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n")
    return status
