"""Damaged and hostile inputs: how many of each kind were tried, and what became of them.

python benchmarks/hardening_inputs.py [TARGET…] [--count 200000]

Runs the targets of tests/hardening/fuzz and writes results/hardening_inputs.md; the outcomes are
kept beside it, so that targets can be run one at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "tests")  # benchmarks/convert.py is not what `convert` means there
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

*Accepted* inputs were harmless, or sound in spite of the damage. Times are of the processor, for
opening an input alone.
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

    lines = [INTRODUCTION, markdown_table(HEADERS, [row(each) for each in outcomes.values()])]
    total = sum(each["inputs"] for each in outcomes.values())
    lines.append(f"{total:,} inputs in all.\n")
    found = [
        f"- {name}: {what} (indices {', '.join(map(str, indices))})\n"
        for name, each in outcomes.items()
        for what, indices in each["findings"].items()
    ]
    return "\n".join([*lines, "".join(found)]).rstrip() + "\n"


def main() -> None:
    """Run what is asked for, and write all that is known."""
    from dataclasses import asdict

    from hardening.fuzz.runner import run
    from hardening.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--count", type=int, default=200_000)
    asked = parser.parse_args()
    for name in asked.targets or TARGETS:
        outcome = asdict(run(TARGETS[name], range(asked.count)))
        known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        known[name] = outcome
        ordered = {each: known[each] for each in TARGETS if each in known}
        KEPT.write_text(json.dumps(ordered, indent=1) + "\n")
        (RESULTS / "hardening_inputs.md").write_text(report(ordered))
        print(json.dumps(outcome))


if __name__ == "__main__":
    main()
