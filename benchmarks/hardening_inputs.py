"""Damaged and hostile inputs: how many of each kind were tried, and what became of them.

python benchmarks/hardening_inputs.py [TARGET…] [--count 200000]

Runs the targets of tests/hardening/fuzz and writes results/hardening_inputs.md; the outcomes are
kept beside it, so that targets can be run one at a time, or side by side, and gone on with. Remove
them to start over.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "tests")  # benchmarks/convert.py is not what `convert` means there
PART = 5000  # inputs between two looks at what is known
RESULTS = ROOT / "benchmarks" / "results"
KEPT = RESULTS / "hardening_inputs.json"
INTRODUCTION = """## Damaged and hostile inputs

Made by `benchmarks/hardening_inputs.py` from sound files by seeded damage that knows the format
(`tests/hardening/fuzz`): counts, lengths, types, dimensions and offsets overwritten, entries
moved, values of the wrong kind, opcodes that run code, lying archives, deep nesting, and blind
flips, cuts and splices. Each input has 2 s of processor time, and a process that may take 64 MiB
and twice the file more than it held before. An input counts as a finding if anything but an error
of ours with one printable line comes out, if the process ends, if a file outside its folder is
opened for writing, or if a process, a socket or an unexpected module is asked for.

More memory is granted where the work is not this process's: 512 MiB to templates, the limit of the
process that runs them, and 1 GiB to grammars and schemas, which llama.cpp takes further. What was
found once is an input of `tests/hardening/test_fuzz_findings.py`.

*Accepted* inputs were harmless, or sound in spite of the damage. Times are of the processor, for
opening an input alone.
"""
COMMANDS = """Whole commands, run in process on damaged models of two families (importance matrices
for those that take one). Refused means one line on stderr and an exit code of the contract; a file
half written, a traceback, a signal or 20 s of processor time would be a finding.
"""
HEADERS = ("Input", "Tried", "Accepted", "Refused", "Findings", "Mean, ms", "Slowest, ms")


def row(outcome: dict[str, Any]) -> list[str]:
    """A target's line of the table."""
    numbers = (outcome[key] for key in ("inputs", "accepted", "refused"))
    mean = 1000 * outcome["cpu_s"] / outcome["inputs"]
    return [
        outcome["target"],
        *(f"{number:,}" for number in numbers),
        str(len(outcome["findings"])),
        f"{mean:.2f}",
        f"{outcome['slowest_ms']:.0f}",
    ]


def report(outcomes: dict[str, Any]) -> str:
    """The section as Markdown."""
    from minitron_cli.output import markdown_table

    parsers = {name: each for name, each in outcomes.items() if not name.startswith("minitron ")}
    commands = {name: each for name, each in outcomes.items() if name not in parsers}
    lines = [INTRODUCTION, markdown_table(HEADERS, [row(each) for each in parsers.values()])]
    if commands:
        lines += [COMMANDS, markdown_table(HEADERS, [row(each) for each in commands.values()])]
    total = sum(each["inputs"] for each in outcomes.values())
    lines.append(
        f"{total:,} inputs in all; `make harden` tries 200,000 of each parser and 5,000 of each "
        "command.\n"
    )
    found = [
        f"- {name}: {what} (indices {', '.join(map(str, indices))})\n"
        for name, each in outcomes.items()
        for what, indices in each["findings"].items()
    ]
    return "\n".join([*lines, "".join(found)]).rstrip() + "\n"


def add(name: str, outcome: dict[str, Any], order: list[str]) -> None:
    """Add a part to what is known of a target, and write it all; other processes do so too."""
    with KEPT.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = json.loads(file.read() or "{}")
        total = known.setdefault(name, outcome)
        if total is not outcome:
            for key in ("inputs", "accepted", "refused", "cpu_s"):
                total[key] += outcome[key]
            total["slowest_ms"] = max(total["slowest_ms"], outcome["slowest_ms"])
            for key in ("findings", "exit_codes"):
                for what, value in outcome[key].items():
                    total[key][what] = total[key].get(what, type(value)()) + value
        ordered = {each: known[each] for each in order if each in known}
        file.truncate(0)
        file.write(json.dumps(ordered, indent=1) + "\n")
        (RESULTS / "hardening_inputs.md").write_text(report(ordered))


def main() -> None:
    """Continue with the requested inputs, and write all results."""
    from dataclasses import asdict

    from hardening.fuzz.runner import run
    from hardening.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--count", type=int, default=200_000)
    asked = parser.parse_args()
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in asked.targets or TARGETS:
        first = known.get(name, {"inputs": 0})["inputs"]
        for start in range(first, asked.count, PART):
            part = range(start, min(start + PART, asked.count))
            add(name, asdict(run(TARGETS[name], part)), list(TARGETS))
            print(f"{name}: {part.stop:,} inputs", flush=True)


if __name__ == "__main__":
    main()
