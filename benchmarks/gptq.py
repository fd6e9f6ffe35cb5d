"""What `minitron quantize --gptq` gains: divergence of levels with and without, same bytes.

    python benchmarks/gptq.py --other wiki.test.raw --result benchmarks/results/gptq.md

Both bundled models are converted, calibrated on examples/calibration.txt and quantized twice, with
the same text as importance matrix and as covariance; both files of a level are measured on
examples/held-out.txt and on a text of another kind, over the same chunks.
"""

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from harness import EXAMPLES, machine, minitron_path, note, parser_for

LEVELS = "Q2_K Q3_K_M Q4_K_M Q5_K_M IQ2_XXS IQ2_XS IQ2_M IQ3_XXS IQ3_S IQ3_M IQ4_XS"
MODELS = ("nano-nemotron", "nano-llama")
PARSER = parser_for(__doc__)
PARSER.add_argument("--levels", default=LEVELS, help="between spaces")
PARSER.add_argument("--checkpoint", nargs="*", type=Path, help="others than the bundled models")
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


def make(given: Namespace, checkpoint: Path, folder: Path) -> list[tuple[str, Path, Path]]:
    """Every level, its plain file and the one with GPTQ."""
    full, imatrix = folder / "full.gguf", folder / "imatrix.gguf"
    levels = given.levels.split()
    note(f"{checkpoint.name}: calibrating")
    words = (minitron_path(given), "convert", checkpoint, "--outtype", "f16", "-o", full, "-q")
    subprocess.run(list(map(str, words)), check=True)
    run(given, "imatrix", full, "-f", given.calibration, "-o", imatrix)
    how = {
        "plain": ("--imatrix", imatrix),
        "gptq": ("--gptq", "--text", given.calibration, "--effort", given.effort),
    }
    for side, options in how.items():
        note(f"{checkpoint.name}: quantizing, {side}")
        source = folder / f"{side}.gguf"
        source.hardlink_to(full)
        run(given, "quantize", source, *levels, "-d", folder, *options)
    return [(v, folder / f"plain-{v}.gguf", folder / f"gptq-{v}.gguf") for v in levels]


def measure(
    given: Namespace, pairs: list[tuple[str, Path, Path]], text: Path
) -> list[dict[str, Any]]:
    """Divergence of both files of every level, and the interval of their difference."""
    files = [path for _, *both in pairs for path in both]
    full = files[0].parent / "full.gguf"
    options = ("-f", text, "--reference", full, "--chunks", given.chunks, "--compare")
    answer = run(given, "ppl", *files, *options)
    rows = {row["model"]: row for row in answer["rows"]}
    between = {(each["a"], each["b"]): each for each in answer["differences"]}
    found = []
    for level, plain, ours in pairs:
        before, after = (rows[path.name]["kld_mean"] for path in (plain, ours))
        # the difference is plain − GPTQ, whose ends change places with its sign
        ends = between[plain.name, ours.name]
        low, high = -ends["kld_difference_high"] / before, -ends["kld_difference_low"] / before
        sizes = [path.stat().st_size for path in (plain, ours)]
        found.append(
            {
                "level": level,
                "bytes": sizes,
                "plain": before,
                "gptq": after,
                "change": after / before - 1,
                "low": low,
                "high": high,
            }
        )
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """One text's results as Markdown."""
    lines = [
        "| level | bytes, plain | GPTQ | KLD, plain | GPTQ | change | 95 % interval |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        plain, ours = row["bytes"]
        lines.append(
            f"| {row['level']} | {plain:,} | {ours:,} | {row['plain']:.5f} | "
            f"{row['gptq']:.5f} | {row['change']:+.0%} | "
            f"{row['low']:+.0%} … {row['high']:+.0%} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Make, measure and print; 1 where GPTQ made a level worse."""
    given = PARSER.parse_args()
    texts = [given.held_out, *([given.other] if given.other else [])]
    parts = ["# GPTQ", ""]
    parts += [f"- {name}: {value}" for name, value in machine().items()]
    parts += [f"- calibration: {given.calibration.name}, effort {given.effort}", ""]
    worse = 0
    for checkpoint in given.checkpoint or [EXAMPLES / name for name in MODELS]:
        with tempfile.TemporaryDirectory(prefix="minitron-benchmark-") as folder:
            pairs = make(given, checkpoint, Path(folder))
            for text in texts:
                note(f"{checkpoint.name}: measuring on {text.name}")
                rows = measure(given, pairs, text)
                worse += sum(row["change"] >= 0 for row in rows)
                shown = table(rows)
                parts += [f"## {checkpoint.name}, {text.name}", "", shown, ""]
                print(f"\n{checkpoint.name}, {text.name}\n{shown}", flush=True)
    if given.result:
        given.result.write_text("\n".join(parts), encoding="utf-8")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
