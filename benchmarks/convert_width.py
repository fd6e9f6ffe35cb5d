"""Convert a checkpoint of Llama-3.1-Minitron-4B-Width's exact shape, beside llama.cpp's and cp.

    python benchmarks/peers/make_checkpoint.py CONFIG.json TOKENIZER_FOLDER width
    python benchmarks/convert_width.py --source width --converter FILE --converter-python EXE

Minitron, convert_hf_to_gguf.py and `cp` of the weights take turns; each writes 9 GB into a new
folder beside the source, which is removed after every run.
"""

import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from harness import Command, NotGiven, Run, machine, minitron_path, note, parser_for, run_once

TARGETS = {"convert_hf_to_gguf.py": 0.5, "cp": 1.5}
PEAK_MIB = 1024
OURS = "minitron convert"
PARSER = parser_for(__doc__)
PARSER.add_argument("--source", required=True, type=Path, help="the checkpoint's folder")
PARSER.add_argument("--converter", metavar="FILE", default=os.environ.get("LLAMA_CPP_CONVERTER"))
PARSER.add_argument(
    "--converter-python", metavar="EXE", default=os.environ.get("LLAMA_CPP_CONVERTER_PYTHON")
)
PARSER.add_argument("--result", metavar="FILE.md", type=Path, help="write the table there")
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
        "convert_hf_to_gguf.py": (*theirs, "--outfile", out, "--outtype", "bf16"),
        "cp": ("cp", *weights, folder),
    }


def measure(beside: Path, runs: int) -> tuple[dict[str, list[Run]], float]:
    """Every side's runs, taken in turn, and the bytes of our output."""
    taken: dict[str, list[Run]] = {}
    size = 0.0
    for number in range(runs):
        for name in (OURS, *TARGETS):
            note(f"{name}: run {number + 1} of {runs}")
            with tempfile.TemporaryDirectory(prefix="minitron-benchmark-", dir=beside) as folder:
                taken.setdefault(name, []).append(run_once([commands(Path(folder))[name]]))
                if name == OURS:
                    size = (Path(folder) / "out.gguf").stat().st_size
    note("")
    return taken, size


def page(taken: dict[str, list[Run]], size: float) -> str:
    """The results as Markdown."""
    lines = [
        "# convert, at the size of Llama-3.1-Minitron-4B-Width",
        "",
        *(f"- {name}: {value}" for name, value in machine().items()),
        f"- bytes written: {size / 1e9:.2f} GB",
        f"- runs of each side, in turn: {len(taken[OURS])}",
        "",
        "| side | wall s (median) | all | CPU s | peak MiB | minitron's time / this | target |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    ours = statistics.median(run.wall for run in taken[OURS])
    for name, runs in taken.items():
        wall = statistics.median(run.wall for run in runs)
        cpu = statistics.median(run.cpu for run in runs)
        walls = ", ".join(f"{run.wall:.1f}" for run in runs)
        peak = max(run.peak_mib for run in runs)
        target = f"≤ {TARGETS[name]}" if name in TARGETS else f"≤ {PEAK_MIB} MiB"
        lines.append(
            f"| {name} | {wall:.1f} | {walls} | {cpu:.1f} | {peak:.0f} | {ours / wall:.2f} "
            f"| {target} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print the table, write --result; 2 where there is nothing to compare with."""
    given = PARSER.parse_args()
    if shutil.disk_usage(given.source).free < 12e9:
        print("convert_width.py: 12 GB of free space are needed", file=sys.stderr)
        return 2
    try:
        taken, size = measure(given.source.absolute().parent, given.runs)
    except NotGiven as reason:
        print(f"convert_width.py: {reason}", file=sys.stderr)
        return 2
    text = page(taken, size)
    print(text)
    if given.result:
        given.result.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
