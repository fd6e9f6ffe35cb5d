r"""The whole job on a model of real size: every command, with time, memory and bytes.

    python benchmarks/peers/make_checkpoint.py CONFIG.json TOKENIZER_FOLDER width
    python benchmarks/full_size.py --source width --folder work --text calibration.txt \
        --held-out held-out.txt --questions hellaswag.txt [--limit 8G] [--steps convert imatrix …]

A step that was measured is kept in FOLDER/measured.json and left out when the script runs again;
what later steps need stays in FOLDER, so that a long job may take several sittings. With --limit
each step runs in a memory cgroup of that size (and its results are kept beside the others).
Prints one Markdown table; the exit code is 1 if a step failed.
"""

import hashlib
import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import Command, machine, minitron_path, parser_for
from measured_process import Measured, measure

LEVELS = ("IQ2_XXS", "Q3_K_M", "Q4_K_M", "Q8_0")
# of the steps that run one level
ONE = "Q4_K_M"
PARSER = parser_for(__doc__)
PARSER.add_argument("--source", required=True, type=Path, help="the checkpoint's folder")
PARSER.add_argument("--folder", required=True, type=Path, help="where files are made and kept")
PARSER.add_argument("--text", required=True, type=Path, help="a calibration text")
PARSER.add_argument("--held-out", required=True, type=Path, help="another text")
PARSER.add_argument("--questions", required=True, type=Path, help="HellaSwag in raw form")
PARSER.add_argument("--limit", metavar="8G", help="a cgroup's memory limit")
PARSER.add_argument("--steps", nargs="+", metavar="STEP", help="only these")
PARSER.add_argument("--levels", nargs="+", default=LEVELS, help=f"{ONE} among them")
PARSER.add_argument("--budget", default="5m", help="of the sensitivity (default: %(default)s)")


@dataclass(frozen=True)
class Files:
    """What the steps read and write."""

    source: Path
    folder: Path
    text: Path
    held_out: Path
    questions: Path
    budget: str
    names: tuple[str, ...]

    @property
    def full(self) -> Path:
        """The converted model."""
        return self.folder / "model-F16.gguf"

    @property
    def matrix(self) -> Path:
        """The importance matrix."""
        return self.folder / "model.imatrix.gguf"

    @property
    def levels(self) -> Path:
        """The folder of the levels."""
        return self.folder / "levels"

    def level(self, name: str) -> Path:
        """A level's file."""
        return self.levels / f"model-{name}.gguf"

    @property
    def sensitivity(self) -> Path:
        """The sensitivities for a solved size."""
        return self.folder / "model.sensitivity.json"


def steps(files: Files) -> dict[str, Command]:
    """Every step's command line after `minitron`, in order."""
    full, matrix = files.full, files.matrix
    table: Command = (
        *map(files.level, files.names),
        "--reference",
        full,
        "-f",
        files.held_out,
        "--chunks",
        2,
    )
    hellaswag: Command = ("--task", "hellaswag", "--data", files.questions, "--limit", 20)
    quantize: Command = ("quantize", full, "--imatrix", matrix, "-d", files.levels)
    gptq: Command = (
        *("quantize", full, "Q3_K_M", "-d", files.folder / "gptq", "--gptq"),
        *("--text", files.text, "--calibration-chunks", 8),
    )
    return {
        "convert": ("convert", files.source, "-o", full, "--outtype", "f16"),
        "verify": ("verify", files.source, full, "--no-logits"),
        "imatrix": ("imatrix", full, "-f", files.text, "--chunks", 4, "-o", matrix),
        "plan of all": (*quantize, "all", "--dry-run", "--json"),
        "plan": (*quantize, *files.names, "--dry-run", "--json"),
        "quantize": (*quantize, *files.names),
        "ppl": ("ppl", *table, "--json"),
        "tasks": ("tasks", files.level(ONE), *hellaswag, "--json"),
        "generate": ("generate", files.level(ONE), "The old house", "-n", 32, "--seed", 1),
        "bench": ("bench", files.level(ONE), "--json"),
        "advise": ("advise", files.levels, "--vram", "6G", "--json"),
        "card": ("card", files.levels, "--force"),
        "sensitivity": (
            *("sensitivity", full, "-f", files.text, "--imatrix", matrix),
            *("--budget", files.budget, "-o", files.sensitivity),
        ),
        "mix": (*quantize[:-2], "--like", "Q3_K_M", "-d", files.folder / "mix", "--no-verify"),
        "gptq": gptq,
        "independent gptq": (
            *("quantize", full, "IQ2_XS", "-d", files.folder / "independent"),
            *("--gptq", "independent", "--text", files.text, "--calibration-chunks", 8),
        ),
    }


JOB = """[model]
source = "{source}"
outtype = "f16"
[quantize]
levels = ["Q4_0", "Q8_0"]
[output]
directory = "{out}"
"""


def killed_run(files: Files, minitron: Path, limit: int | None) -> Measured:
    """A job file, killed at a random moment and resumed; its files equal an undisturbed run's."""
    out, whole = files.folder / "killed", files.folder / "undisturbed"
    job = files.folder / "killed.toml"
    job.write_text(JOB.format(source=files.source.resolve(), out=out.resolve()))
    other = files.folder / "undisturbed.toml"
    other.write_text(JOB.format(source=files.source.resolve(), out=whole.resolve()))
    first = measure((minitron, "run", other), limit)
    wanted = _hashes(whole)
    _remove(whole)
    for fraction in sorted(random.Random(1).uniform(0.1, 0.9) for _ in range(2)):
        measure((minitron, "run", job, "--resume"), limit, kill_after=fraction * first.wall)
    last = measure((minitron, "run", job, "--resume"), limit)
    same = _hashes(out) == wanted and bool(wanted)
    _remove(out)
    problem = "" if same else "\nthe files differ from those of an undisturbed run"
    code = last.code or first.code or int(not same)
    return replace(last, code=code, output=last.output + problem)


def _hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.glob("*.gguf")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _remove(folder: Path) -> None:
    for path in folder.glob("**/*"):
        if path.is_file():
            path.unlink()


def main() -> int:
    """Measure what is missing, and print the table."""
    given = PARSER.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    files = Files(
        *(given.source, given.folder, given.text, given.held_out, given.questions, given.budget),
        tuple(given.levels),
    )
    minitron = minitron_path(given)
    limit = _bytes(given.limit) if given.limit else None
    kept = given.folder / "measured.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    work: dict[str, Callable[[], Measured]] = {
        name: lambda words=words: measure((minitron, *words), limit)  # type: ignore[misc]
        for name, words in steps(files).items()
    }
    work["killed run"] = lambda: killed_run(files, minitron, limit)
    for name, run in work.items():
        key = f"{name} in {given.limit}" if given.limit else name
        if results.get(key, {}).get("code") == 0 or (given.steps and name not in given.steps):
            continue
        print(f"{key} …", file=sys.stderr, flush=True)
        measured = run()
        results[key] = asdict(measured) | {"output": measured.output[-20000:]}
        kept.write_text(json.dumps(results, indent=1))
        if measured.code:
            print(f"{key}: exit code {measured.code}\n{measured.output[-1000:]}", file=sys.stderr)
    print(table(results))
    print(json.dumps(machine()))
    return int(any(result["code"] for result in results.values()))


def _bytes(text: str) -> int:
    return int(float(text.removesuffix("G")) * 2**30)


def forecast(name: str, results: dict[str, dict[str, Any]]) -> float | None:
    """The seconds that minitron said a step would take; None where it said nothing."""
    plan = results.get(name.replace("quantize", "plan"))
    if name.startswith("quantize") and plan:
        document = plan["output"]  # after the notes
        return float(json.loads(document[document.index("{\n") :])["estimated_seconds"])
    if name.startswith("sensitivity"):  # what it says is of its least; its forecast is the budget
        return None
    said = re.search(r"takes about ([\d.]+) (s|min|hours)", results[name]["output"])
    return float(said[1]) * {"s": 1, "min": 60, "hours": 3600}[said[2]] if said else None


def table(results: dict[str, dict[str, Any]]) -> str:
    """The steps as a Markdown table; memory in MiB, bytes in GB."""
    memory = "anonymous MiB", "resident MiB", "cgroup MiB"
    heads = ("step", "exit", "forecast s", "wall s", "CPU s", *memory, "read GB", "written GB")
    lines = [f"| {' | '.join(heads)} |", "|---" + "|---:" * 9 + "|"]
    for name, one in results.items():
        seconds = forecast(name, results)
        cells: Sequence[str] = (
            *(name, str(one["code"]), "" if seconds is None else f"{seconds:.0f}"),
            *(f"{one['wall']:.1f}", f"{one['cpu']:.1f}"),
            *(f"{one[key] / 2**20:.0f}" for key in ("anonymous", "resident")),
            "" if one["cgroup_peak"] is None else f"{one['cgroup_peak'] / 2**20:.0f}",
            *(f"{one[key] / 1e9:.1f}" for key in ("read", "written")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
