"""What GPTQ and solved mixes gain on real weights: every level, several texts, 95 % intervals.

    python benchmarks/real_weights.py smollm2-F16.gguf --folder work --types=-q4_1 \
        --calibration mixed-cal.txt --text wiki.test.raw --text mixed-held.txt --text maths.txt

Every file of a level is made as users make it, by a command: the preset with an importance matrix,
the preset's types with codes of GPTQ, the mix solved for the level's size, and the mix with GPTQ.
Each is compared with the preset on the same chunks. What is made and measured stays in FOLDER: a
second run continues, with the same options, so that a long job may take several sittings. Prints
Markdown; Linux only.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Command, machine, minitron_path, note, parser_for
from measured_process import measure as run_measured

from minitron_quant.chunking import ChunkSettings
from minitron_quant.perplexity.paired import paired_difference
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import measure

LEVELS = (
    "IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M Q2_K_S Q2_K IQ3_XXS IQ3_XS Q3_K_S IQ3_S IQ3_M Q3_K_M Q3_K_L "
    "IQ4_XS IQ4_NL Q4_K_S Q4_K_M Q5_K_S Q5_K_M"
)
METHODS = ("preset", "independent", "sequential", "mix", "mix-independent", "mix-sequential")
PARSER = parser_for(__doc__)
PARSER.add_argument("full", type=Path, help="the F16 file")
PARSER.add_argument("--folder", required=True, type=Path, help="where files are made and kept")
PARSER.add_argument("--calibration", required=True, type=Path, help="a text of many kinds")
PARSER.add_argument("--calibration-chunks", type=int, default=80, help="of 512 tokens")
PARSER.add_argument("--text", action="append", required=True, type=Path, help="to measure on")
PARSER.add_argument("--chunks", type=int, default=16, help="of 512 tokens, of each text")
PARSER.add_argument("--levels", default=LEVELS, help="between spaces")
PARSER.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
PARSER.add_argument("--types", help="of mixes; =-q4_1 for a model decoded from it")
PARSER.add_argument("--budget", help="of the sensitivities, such as 30m; without: as they take")
PARSER.add_argument("--result", metavar="FILE.md", type=Path, help="write the tables there")


class Work:
    """The folder of a run: files by method and level, and what making and measuring them gave."""

    def __init__(self, given: Namespace) -> None:
        self.given, self.folder, self.model = given, given.folder, given.full
        self.minitron = minitron_path(given)
        self.levels: list[str] = given.levels.split()
        self.kept = self.folder / "kept.json"
        self.results: dict[str, dict[str, Any]] = (
            json.loads(self.kept.read_text()) if self.kept.exists() else {"made": {}, "kld": {}}
        )

    def file(self, method: str, level: str) -> Path:
        """The file of a level; a mix lies in a folder of its own, with a name that has its size."""
        if method.startswith("mix"):
            return next(Path(self.folder / method / level).glob("*bpw*.gguf"))
        return Path(self.folder / method / f"{self.model.stem.removesuffix('-F16')}-{level}.gguf")

    @property
    def imatrix(self) -> Path:
        """The importance matrix of the calibration text."""
        return Path(self.folder / "imatrix.gguf")

    @property
    def sensitivity(self) -> Path:
        """The sensitivities for solved sizes."""
        return Path(self.folder / "model.sensitivity.json")

    def keep(self, kind: str, name: str, value: object) -> None:
        """Add a result to the folder's."""
        self.results[kind][name] = value
        self.kept.write_text(json.dumps(self.results, indent=1))

    def run(self, name: str, *words: str | Path | int) -> None:
        """Run a command of minitron once, and keep what it took; RuntimeError if it fails."""
        if name in self.results["made"]:
            return
        note(name)
        took = run_measured((self.minitron, *words, "--threads", self.given.threads or 2))
        if took.code:
            raise RuntimeError(f"{name}: exit code {took.code}\n{took.output[-2000:]}")
        self.keep("made", name, {"wall": took.wall, "cpu": took.cpu, "memory": took.anonymous})


def make(work: Work, method: str) -> None:
    """Make every level's file with one method."""
    text: Command = (
        *("--text", work.given.calibration),
        *("--calibration-chunks", work.given.calibration_chunks),
    )
    folder = work.folder / method
    if method == "preset":
        options: Command = ("--imatrix", work.imatrix)
        work.run(method, "quantize", work.model, *work.levels, "-d", folder, *options)
    elif not method.startswith("mix"):
        options = ("--gptq", method, *text)
        work.run(method, "quantize", work.model, *work.levels, "-d", folder, *options)
    else:
        _, _, codes = method.partition("-")
        gptq: Command = ("--gptq", codes, *text) if codes else ()
        if codes == "independent":
            collected = next((work.folder / codes).glob("*.covariance.gguf"))
            gptq = "--gptq", codes, "--covariance", collected
        sensitivity: Command = ("--sensitivity", work.sensitivity, "--no-verify")
        if work.given.types:
            sensitivity = *sensitivity, f"--types={work.given.types}"
        for level in work.levels:
            options = ("--like", level, "-d", folder / level, *sensitivity, *gptq)
            work.run(f"{method} {level}", "quantize", work.model, *options)


def calibrate(work: Work) -> None:
    """The importance matrix, and the sensitivities where a mix is to be solved."""
    text, chunks = work.given.calibration, work.given.calibration_chunks
    words: Command = ("-f", text, "--chunks", chunks, "-o", work.imatrix)
    work.run("imatrix", "imatrix", work.model, *words)
    if any(method.startswith("mix") for method in work.given.methods):
        words = ("-f", text, "--imatrix", work.imatrix, "-o", work.sensitivity)
        if work.given.budget:
            words = *words, "--budget", work.given.budget
        work.run("sensitivity", "sensitivity", work.model, *words)


def score(work: Work, text: Path) -> dict[tuple[str, str], list[float]]:
    """The divergence of every file from the full model, chunk by chunk."""
    chunks = work.given.chunks
    names = {
        (method, level): f"{text.name} {chunks} {method} {level}"
        for method in work.given.methods
        for level in work.levels
    }
    missing = {
        work.file(*key): name for key, name in names.items() if name not in work.results["kld"]
    }
    if missing:
        note(f"{text.name}: measuring {len(missing)} files")
        # rows have the name of the file only, which all methods share
        settings = MeasureSettings(
            tuple(missing), text, ChunkSettings(limit=chunks), reference=work.model
        )
        rows = iter(measure(settings))
        next(rows)
        for row, name in zip(rows, missing.values(), strict=True):
            work.keep("kld", name, [float(value) for value in row.chunk_kld])
    return {key: work.results["kld"][name] for key, name in names.items()}


def change(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The mean beside another, in percent, with its 95 % interval over chunks."""
    base, between = sum(theirs) / len(theirs), paired_difference(ours, theirs)
    if not base:
        return f"{sum(ours) / len(ours):.5f}"
    low, mean, high = (
        f"{100 * value / base:+.0f}" for value in (between.low, between.mean, between.high)
    )
    return f"{mean} % ({low} … {high})"


def table(work: Work, scores: dict[tuple[str, str], list[float]]) -> str:
    """One text's divergences as Markdown, every method beside the preset."""
    others = [method for method in work.given.methods if method != "preset"]
    heads = ["level", "bytes", "preset: KLD", *(method.replace("-", ", ") for method in others)]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for level in work.levels:
        preset = scores["preset", level]
        cells = [level, f"{work.file('preset', level).stat().st_size:,}"]
        cells.append(f"{sum(preset) / len(preset):.5f}")
        cells += [change(scores[method, level], preset) for method in others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def costs(work: Work) -> str:
    """What each step took, mixes of one kind together."""
    lines = ["| step | wall s | CPU s | anonymous MiB |", "|---|---:|---:|---:|"]
    steps: dict[str, list[dict[str, float]]] = {}
    for name, took in work.results["made"].items():
        steps.setdefault(name.split()[0], []).append(took)
    for name, took in steps.items():
        wall, cpu = (sum(one[key] for one in took) for key in ("wall", "cpu"))
        memory = max(one["memory"] for one in took) / 2**20
        files = f" ({len(took)} files)" if len(took) > 1 else ""
        lines.append(f"| {name}{files} | {wall:.0f} | {cpu:.0f} | {memory:.0f} |")
    return "\n".join(lines)


def main() -> int:
    """Make and measure what is missing, and print the tables."""
    given = PARSER.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    work = Work(given)
    calibrate(work)
    for method in given.methods:
        make(work, method)
    parts = [f"- {name}: {value}" for name, value in machine().items()]
    for text in given.text:
        parts += ["", f"## {text.name}, {given.chunks} chunks", "", table(work, score(work, text))]
    parts += ["", "## What it takes", "", costs(work)]
    print("\n".join(parts))
    if given.result:
        given.result.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
