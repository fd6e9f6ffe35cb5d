"""What `minitron quantize --gptq` gains: divergence of levels with and without, same bytes.

    python benchmarks/gptq.py --other wiki.test.raw --result benchmarks/results/gptq.md

Both bundled models are converted, calibrated on examples/calibration.txt and quantized three times:
with the text's importance matrix, with independent GPTQ, with sequential GPTQ; or as --sides says
(two-sided takes transformers). All files of a level are measured on examples/held-out.txt and on a
text of another kind, over the same chunks.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import EXAMPLES, machine, minitron_path, note, parser_for

LEVELS = "Q2_K Q3_K_M Q4_K_M Q5_K_M IQ2_XXS IQ2_XS IQ2_M IQ3_XXS IQ3_S IQ3_M IQ4_XS"
MODELS = ("nano-nemotron", "nano-llama")
SIDES = ("plain", "independent", "sequential")
PARSER = parser_for(__doc__)
PARSER.add_argument("--levels", default=LEVELS, help="between spaces")
PARSER.add_argument("--sides", nargs="+", default=SIDES, help="the last beside the others")
PARSER.add_argument(
    "--source", nargs="*", type=Path, help="checkpoints or F16 files other than the bundled models"
)
PARSER.add_argument("--calibration-chunks", type=int, help="of 512 tokens (default: all)")
PARSER.add_argument("--calibration", type=Path, default=EXAMPLES / "calibration.txt")
PARSER.add_argument("--held-out", type=Path, default=EXAMPLES / "held-out.txt")
PARSER.add_argument("--other", type=Path, help="a text of another kind, such as wiki.test.raw")
PARSER.add_argument("--chunks", type=int, default=40, help="of 512 tokens, of each text")
PARSER.add_argument("--effort", choices=("normal", "high"), default="normal")
PARSER.add_argument("--result", metavar="FILE.md", type=Path, help="write the tables there")


def run(given: Namespace, *words: object) -> dict[str, Any]:
    """What a command answers with --json."""
    command = [minitron_path(given), *words, "--json", "-q"]
    if given.threads:
        command += ["--threads", given.threads]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def make(given: Namespace, origin: Path, folder: Path, costs: list[str]) -> dict[str, list[Path]]:
    """By level the files of all sides; what each of them took is added to costs."""
    full, imatrix = folder / "full.gguf", folder / "imatrix.gguf"
    levels, most = given.levels.split(), given.calibration_chunks
    note(f"{origin.name}: calibrating")
    if origin.is_dir():
        words = (minitron_path(given), "convert", origin, "--outtype", "f16", "-o", full, "-q")
        subprocess.run(list(map(str, words)), check=True)
    else:
        shutil.copyfile(origin, full)
    some = ("--chunks", most) if most else ()
    run(given, "imatrix", full, "-f", given.calibration, "-o", imatrix, *some)
    some = ("--calibration-chunks", most) if most else ()
    gptq = ("--text", given.calibration, "--effort", given.effort, *some)
    for side in given.sides:
        options = ("--imatrix", imatrix) if side == "plain" else ("--gptq", side, *gptq)
        source = folder / f"{side}.gguf"
        source.hardlink_to(full)
        note(f"{origin.name}: quantizing, {side}")
        began, before = time.monotonic(), os.times()
        run(given, "quantize", source, *levels, "-d", folder, *options)
        after, wall = os.times(), time.monotonic() - began
        cpu = after.children_user + after.children_system
        cpu -= before.children_user + before.children_system
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        costs.append(f"{side} {wall:.0f} s, CPU {cpu:.0f} s, at most {most / 1024:.0f} MiB so far")
    return {level: [folder / f"{side}-{level}.gguf" for side in given.sides] for level in levels}


def measure(given: Namespace, files: dict[str, list[Path]], text: Path) -> list[dict[str, Any]]:
    """Divergence of all files of every level, and the interval of the last two sides."""
    paths = [path for some in files.values() for path in some]
    full = paths[0].parent / "full.gguf"
    options = ("-f", text, "--reference", full, "--chunks", given.chunks, "--compare")
    answer = run(given, "ppl", *paths, *options)
    rows = {row["model"]: row for row in answer["rows"]}
    between = {(each["a"], each["b"]): each for each in answer["differences"]}
    found = []
    for level, some in files.items():
        *_, before, last = (path.name for path in some)
        # the difference is before − last, whose ends change places with its sign
        ends, base = between[before, last], rows[before]["kld_mean"]
        found.append(
            {
                "level": level,
                "bytes": some[-1].stat().st_size,
                "kld": [rows[path.name]["kld_mean"] for path in some],
                "low": -ends["kld_difference_high"] / base,
                "high": -ends["kld_difference_low"] / base,
            }
        )
    return found


def table(rows: list[dict[str, Any]], sides: Sequence[str]) -> str:
    """One text's results as Markdown: divergences, and the last side beside each of the others."""
    heads = ["level", "bytes", "KLD, " + sides[0], *sides[1:]]
    heads += [f"beside {side}" for side in sides[:-1]] + ["95 % interval"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for row in rows:
        *others, last = row["kld"]
        cells = [row["level"], f"{row['bytes']:,}", *(f"{kld:.5f}" for kld in row["kld"])]
        cells += [f"{last / kld - 1:+.0%}" for kld in others]
        cells.append(f"{row['low']:+.0%} … {row['high']:+.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Make, measure and print; 1 where the last side made a level worse than another file."""
    given = PARSER.parse_args()
    texts = [given.held_out, *([given.other] if given.other else [])]
    parts = ["# GPTQ", ""]
    parts += [f"- {name}: {value}" for name, value in machine().items()]
    parts += [f"- calibration: {given.calibration.name}, effort {given.effort}", ""]
    worse = 0
    for origin in given.source or [EXAMPLES / name for name in MODELS]:
        with tempfile.TemporaryDirectory(prefix="minitron-benchmark-") as folder:
            costs: list[str] = []
            files = make(given, origin, Path(folder), costs)
            parts += [f"{origin.name}: {'; '.join(costs)}", ""]
            print(parts[-2], flush=True)
            for text in texts:
                note(f"{origin.name}: measuring on {text.name}")
                rows = measure(given, files, text)
                worse += sum(row["kld"][-1] >= min(row["kld"][:-1]) for row in rows)
                shown = table(rows, given.sides)
                parts += [f"## {origin.name}, {text.name}", "", shown, ""]
                print(f"\n{origin.name}, {text.name}\n{shown}", flush=True)
    if given.result:
        given.result.write_text("\n".join(parts), encoding="utf-8")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
