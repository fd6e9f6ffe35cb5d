"""Convert a checkpoint of a published model's exact shape, beside llama.cpp's and cp.

    python benchmarks/peers/make_checkpoint.py CONFIG.json TOKENIZER_FOLDER width
    python benchmarks/convert_width.py --source width --converter FILE --converter-python EXE
    python benchmarks/peers/make_checkpoint.py peers/experts.json QWEN3_TOKENIZER moe --layers 6
    python benchmarks/convert_width.py --source moe --title "Qwen3-30B-A3B" --target 0.4 …

Minitron, convert_hf_to_gguf.py and `cp` of the weights take turns; each writes as much as the
source holds into a new folder beside it, which is removed after every run.
"""

import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from harness import Command, NotGiven, Run, machine, minitron_path, note, parser_for, run_once

PEAK_MIB = 1024
TIMES = ("wall", "cpu")
OURS, THEIRS, COPY = "minitron convert", "convert_hf_to_gguf.py", "cp"
PARSER = parser_for(__doc__)
PARSER.add_argument("--source", required=True, type=Path, help="the checkpoint's folder")
PARSER.add_argument("--converter", metavar="FILE", default=os.environ.get("LLAMA_CPP_CONVERTER"))
PARSER.add_argument(
    "--converter-python", metavar="EXE", default=os.environ.get("LLAMA_CPP_CONVERTER_PYTHON")
)
PARSER.add_argument("--result", metavar="FILE.md", type=Path, help="write the table there")
PARSER.add_argument("--title", default="Llama-3.1-Minitron-4B-Width", help="of the table")
PARSER.add_argument("--target", type=float, default=0.5, help="of the ratio to llama.cpp's")
PARSER.set_defaults(runs=2)


def commands(folder: Path) -> dict[str, Command]:
    """The three sides by name, writing into `folder`."""
    given = PARSER.parse_args()
    if not given.converter or not given.converter_python:
        raise NotGiven("give convert_hf_to_gguf.py as --converter and a Python with torch for it")
    out = folder / "out.gguf"
    weights = sorted(given.source.glob("model*.safetensors"))
    theirs = (given.converter_python, given.converter, given.source)
    return {
        OURS: (minitron_path(given), "convert", given.source, "-o", out, "-q"),
        THEIRS: (*theirs, "--outfile", out, "--outtype", "bf16"),
        COPY: ("cp", *weights, folder),
    }


def measure(beside: Path, runs: int) -> tuple[dict[str, list[Run]], float]:
    """Every side's runs, taken in turn, and the bytes of our output."""
    taken: dict[str, list[Run]] = {}
    size = 0.0
    for number in range(runs):
        for name in (OURS, THEIRS, COPY):
            note(f"{name}: run {number + 1} of {runs}")
            with tempfile.TemporaryDirectory(prefix="minitron-benchmark-", dir=beside) as folder:
                taken.setdefault(name, []).append(run_once([commands(Path(folder))[name]]))
                if name == OURS:
                    size = (Path(folder) / "out.gguf").stat().st_size
    note("")
    return taken, size


def page(taken: dict[str, list[Run]], size: float, title: str, target: float) -> str:
    """The results as Markdown."""
    targets = {OURS: f"≤ {PEAK_MIB} MiB", THEIRS: f"≤ {target}", COPY: "≤ 1.5"}
    lines = [
        f"# convert, at the size of {title}",
        "",
        *(f"- {name}: {value}" for name, value in machine().items()),
        f"- bytes written: {size / 1e9:.2f} GB",
        f"- runs of each side, in turn: {len(taken[OURS])}",
        "",
        "| side | wall s (median) | all | CPU s | peak MiB | wall ratio | CPU ratio | target |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for name, runs in taken.items():
        ours = taken[OURS]
        wall, cpu = (statistics.median(getattr(run, key) for run in runs) for key in TIMES)
        ratios = [statistics.median(getattr(run, key) for run in ours) for key in TIMES]
        walls = ", ".join(f"{run.wall:.1f}" for run in runs)
        peak = max(run.peak_mib for run in runs)
        lines.append(
            f"| {name} | {wall:.1f} | {walls} | {cpu:.1f} | {peak:.0f} | {ratios[0] / wall:.2f} "
            f"| {ratios[1] / cpu:.2f} | {targets[name]} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print the table, write --result; 2 where there is nothing to compare with."""
    given = PARSER.parse_args()
    needed = 1.3 * sum(path.stat().st_size for path in given.source.glob("model*.safetensors"))
    if shutil.disk_usage(given.source).free < needed:
        print(f"convert_width.py: {needed / 1e9:.0f} GB of free space are needed", file=sys.stderr)
        return 2
    try:
        taken, size = measure(given.source.absolute().parent, given.runs)
    except NotGiven as reason:
        print(f"convert_width.py: {reason}", file=sys.stderr)
        return 2
    text = page(taken, size, given.title, given.target)
    print(text)
    if given.result:
        given.result.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
