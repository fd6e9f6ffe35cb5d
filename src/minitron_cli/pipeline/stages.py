"""What a job measures of its files besides perplexity: tasks and speed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minitron_cli.pipeline.job_file import SpeedSection, TasksSection
from minitron_cli.pipeline.state import Document
from minitron_cli.units import show_size, show_time
from minitron_core.hashing import file_sha256, fingerprint
from minitron_core.progress import Progress
from minitron_engine.llama.settings import EVERY_GPU, ContextSettings, GpuLayers, Placement
from minitron_quant.bench.run import BenchPlan, plan_tests
from minitron_quant.quantize.run import LevelResult
from minitron_quant.tasks.evaluate import TasksSettings, evaluate
from minitron_quant.tasks.likelihood import ScoreSettings
from minitron_quant.tasks.task import TaskOptions

Remember = Callable[[str, Callable[[], list[Document]]], list[Document]]
_THINGS = {"tasks": "tasks", "speed": "tests"}
_SPEED_KEYS = ("n_prompt", "n_gen", "avg_ts", "stddev_ts")


@dataclass(frozen=True)
class Machine:
    """What a job may use of this machine; results are the same, save for a GPU's rounding."""

    threads: int | None = None
    gpu_layers: GpuLayers = "auto"
    placement: Placement = EVERY_GPU

    def devices(self) -> tuple[str, ...]:
        """What results depend on, as texts; nothing where the machine decides."""
        chosen = self.gpu_layers, self.placement
        return () if chosen == ("auto", EVERY_GPU) else (repr(chosen),)


THIS_MACHINE = Machine()


def finished_line(name: str, seconds: float, result: object) -> str:
    """One line when a stage is done, with what it made."""
    if isinstance(result, tuple):  # rows, and what stopped them
        result = result[0]
    made = ""
    if isinstance(result, Path):
        made = f"{result.name}, {show_size(result.stat().st_size)}, "
    elif isinstance(result, list):
        files = [each for each in result if isinstance(each, LevelResult)]
        size = f", {show_size(sum(each.bytes for each in files))}" if files else ""
        made = f"{len(result)} {_THINGS.get(name, 'files')}{size}, "
    return f"{name}: {made}{show_time(seconds)}"


def try_tasks(
    section: TasksSection,
    files: dict[Path, str],
    reference: Path,
    machine: Machine,
    remember: Remember,
    listener: Progress,
) -> list[Document]:
    """One document per task: its name, its data, and a row for every file.

    files: the models and their SHA-256. remember: gives the rows that a key has, or has them made.
    """
    documents = []
    for task, data in section.data.items():
        options = TaskOptions(data, section.limit)
        settings = TasksSettings(
            tuple(files),
            task,
            options,
            ScoreSettings(threads=machine.threads),
            machine.gpu_layers,
            reference,
            machine.placement,
        )
        made_from = task, _data_hash(data), str(section.limit), *machine.devices(), *files.values()
        key = fingerprint("tasks", *made_from)
        rows = remember(f"{task} {key}", partial(_tried, settings, listener))
        documents.append({"task": task, "data": data.name, "rows": rows})
    return documents


def _tried(settings: TasksSettings, listener: Progress) -> list[Document]:
    return [row.document() for row, _ in evaluate(settings, listener)]


def try_speed(
    section: SpeedSection,
    files: dict[Path, str],
    machine: Machine,
    remember: Remember,
    listener: Progress,
) -> list[Document]:
    """Tokens per second of every file: a row for the prompt and one for the generation."""

    def work() -> list[Document]:
        plan = BenchPlan(
            tuple(files),
            (machine.gpu_layers,),
            (ContextSettings(0, 2048, threads=machine.threads),),
            plan_tests([section.prompt], [section.generate], [0]),
            section.repetitions,
            machine.placement,
        )
        return [
            {"model": Path(row["model_filename"]).name, **{key: row[key] for key in _SPEED_KEYS}}
            for row in plan.rows(listener)
        ]

    return remember(f"speed {fingerprint(repr(section), repr(machine), *files.values())}", work)


def speeds_of(rows: Sequence[Document]) -> dict[str, tuple[float | None, float | None]]:
    """Tokens per second of prompt and generation by the name of the file."""
    found: dict[str, list[float | None]] = {}
    for row in rows:
        found.setdefault(row["model"], [None, None])[bool(row["n_gen"])] = row["avg_ts"]
    return {name: (prompt, generated) for name, (prompt, generated) in found.items()}


def _data_hash(data: Path) -> str:
    if data.is_dir():
        return fingerprint(*(file_sha256(path) for path in sorted(data.iterdir())))
    return file_sha256(data)
