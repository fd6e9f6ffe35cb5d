"""Writes results/hardening.md from what the hardening tests print about what they did.

    make harden        # runs them and then this
    python benchmarks/hardening.py OUTPUT...

OUTPUT: pytest's own, as text or JUnit XML. A test prints its line when it has passed, so lines are
counted, and what failed is missing.
"""

import re
import sys
from collections import Counter
from html import unescape
from pathlib import Path

REPORT = Path(__file__).parent / "results" / "hardening.md"
COMMANDS = ("convert", "imatrix", "quantize", "size", "gptq", "ppl", "tasks", "run")
HEAD = """# What it withstands

Made by `make harden` ([hardening.py](../hardening.py)) from what its tests print. Damaged and
hostile inputs have a report of their own: [hardening_inputs.md](hardening_inputs.md). The models
are the two bundled ones; every command runs in a process of its own, on a machine with two cores
that did other things as well. `size` is `quantize --bpw` with its proof, `gptq` is
`quantize --gptq`; imatrix, ppl and run go on with `--resume`.
"""
KILLED = """
After every kill, full disk and signal the files under their own names were those of an
uninterrupted run, byte for byte, or not there; going on then gave all of them and the same numbers,
and left nothing else behind. Half of the kills came by the clock, half before a drawn line of our
code. A full disk ends with exit code 6 and one sentence, whichever write it refuses, SQLite's too.
The signals are SIGTERM, SIGHUP and SIGINT; the exit code is 130. Of four processes on one folder
those that cannot work say so and change nothing. A 0 says that the runs that this was made from did
not come so far: `make harden` goes through all of them.
"""
LIMITED = """
`ulimit -v` from 60 MiB to 2 GiB, and cgroups from 16 to 768 MiB where the machine lets make them,
with the least that a command was done with. Too little address space is exit code 6 and one
sentence, whoever met it first: Python, llama.cpp, OpenBLAS or OpenMP; only where a new thread's own
data find no room (seen once, `ppl` at 200 MiB) the C library leaves at once, with a sentence of its
own and 127. In a cgroup the system kills what takes more. Files under their own names are whole.
"""
CUT = """
The file is mapped when it loses all but its first page, before a drawn call of a function of ours.
Where the command needs the rest: exit code 8 and one sentence with the file's name. Where it has
read it: the whole result.
"""


def counted(text: str, word: str) -> Counter[str]:
    """Lines that begin with a word, by the next one; those of a place repeated count once."""
    lines = {line.rstrip() for line in re.findall(rf"^{word} .*", text, re.MULTILINE)}
    return Counter(line.split()[1] for line in lines)


def crashes(text: str) -> str:
    rounds = {
        (c, s): how for c, s, how in re.findall(r"KILLED (\w+) (\d+) (killed|was done)", text)
    }
    died = Counter(command for (command, _), how in rounds.items() if how == "killed")
    tried = Counter(command for command, _ in rounds)
    filled, ended = counted(text, "FULL"), counted(text, "ENDED")
    together = counted(text, "TOGETHER")
    rows = [
        f"| {name} | {tried[name]} | {died[name]} | {filled[name]} | {ended[name]} | "
        f"{together[name] or ''} |"
        for name in COMMANDS
    ]
    sums = [sum(each.values()) for each in (tried, died, filled, ended, together)]
    return "\n".join(
        [
            "## Killed, full, ended",
            "",
            "| command | rounds of kill -9 | killed at work | disk full at a write | signals | "
            "four at once |",
            "|:--|--:|--:|--:|--:|--:|",
            *rows,
            f"| all | {' | '.join(map(str, sums))} |",
            "",
            KILLED.strip(),
        ]
    )


def cuts(text: str) -> str:
    rounds = {(c, s): how for c, s, how in re.findall(r"CUT (\w+) (\d+) (cut|was done)", text)}
    tried = Counter(command for command, _ in rounds)
    met = Counter(command for (command, _), how in rounds.items() if how == "cut")
    rows = [f"| {name} | {tried[name]} | {met[name]} |" for name in sorted(tried)]
    return "\n".join(
        [
            "## A model cut short in place",
            "",
            CUT.strip(),
            "",
            "| command | files cut | met it: exit code 8 |",
            "|:--|--:|--:|",
            *rows,
            f"| all | {sum(tried.values())} | {sum(met.values())} |",
        ]
    )


def flips(text: str) -> str:
    found = dict(re.findall(r"FLIPPED (\S+) (\d+)", text))
    rows = [f"| {name} | {count} |" for name, count in sorted(found.items())]
    return "\n".join(
        [
            "## Flipped bits",
            "",
            "| test | bits, all noticed |",
            "|:--|--:|",
            *rows,
            f"| all | {sum(map(int, found.values()))} |",
        ]
    )


def crowd(text: str) -> str:
    lines = re.findall(r"^SERVED (.*)", text, re.MULTILINE)
    told = max(lines, key=lambda line: float(re.findall(r"in ([\d.]+) s", line)[0]), default="–")
    return (
        f"## Fifty clients of one server\n\n40 that ask, 5 that leave midway, 5 that stall: {told}."
    )


def memory(text: str) -> str:
    told = re.findall(r"MEMORY (\S+ \S+): (\d+) of (\d+) bytes", text)
    rows = [f"| {what} | {int(a) >> 20} | {int(b) >> 20} |" for what, a, b in sorted(set(told))]
    return "\n".join(
        [
            "## Memory that convert tells and takes",
            "",
            "| | MiB taken | MiB forecast |",
            "|:--|--:|--:|",
            *rows,
        ]
    )


def little_memory(text: str) -> str:
    """Of each kind of limit: how many were tried, with how many it was done, and the least."""
    found = {
        (kind, name): (tried, done, least)
        for kind, name, tried, done, least in re.findall(
            r"^(LIMITED|RESIDENT) (\w+) (\d+) (\d+) (\d+)", text, re.MULTILINE
        )
    }
    none = ("0", "0", "–")
    rows = []
    for name in sorted({name for _, name in found}):
        cells = [found.get((kind, name), none) for kind in ("LIMITED", "RESIDENT")]
        rows.append(f"| {name} | {' | '.join(cells[0] + cells[1])} |")
    return "\n".join(
        [
            "## Memory limited",
            "",
            LIMITED.strip(),
            "",
            "| command | address spaces | done | least MiB | cgroups | done | least MiB |",
            "|:--|--:|--:|--:|--:|--:|--:|",
            *rows,
        ]
    )


def main() -> None:
    text = "\n".join(unescape(Path(name).read_text(errors="replace")) for name in sys.argv[1:])
    parts = (
        HEAD,
        crashes(text),
        cuts(text),
        flips(text),
        crowd(text),
        memory(text),
        little_memory(text),
    )
    REPORT.write_text("\n".join(f"{part.rstrip()}\n" for part in parts))
    print(REPORT.read_text())


if __name__ == "__main__":
    main()
