"""Job files: a TOML document becomes a checked, frozen description of the work."""

import difflib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minitron_cli.pipeline.job_keys import check_value, keys_of
from minitron_core.errors import NotFound, Usage
from minitron_core.quoting import quoted
from minitron_core.text_encoding import as_utf8
from minitron_quant.tasks.registry import task_names


@dataclass(frozen=True)
class ModelSection:
    """Which checkpoint to convert (a folder, or owner/name on the Hub), and to which type.

    A file may name several sources; each becomes a job of its own.
    """

    source: str
    outtype: str = "auto"

    @property
    def requantizes(self) -> bool:
        """Whether the levels are made from a quantized file, as choosing this type asks for."""
        return self.outtype == "q8_0"


@dataclass(frozen=True)
class CalibrationSection:
    """The texts of the importance matrix; none means that no matrix is made."""

    text: tuple[Path, ...] = ()
    chunks: int | None = None
    ctx: int = 512


@dataclass(frozen=True)
class QuantizeSection:
    """The levels to make, and sizes, which get solved mixes."""

    levels: tuple[str, ...] = ("all",)
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeasureSection:
    """The text to measure on; None measures nothing. divergence: also from the full model."""

    text: Path | None = None
    ctx: int = 512
    chunks: int | None = None
    divergence: bool = True


@dataclass(frozen=True)
class TasksSection:
    """Files of questions by the task that they are for; at most `limit` of each."""

    data: dict[str, Path] = field(default_factory=dict)
    limit: int | None = None


@dataclass(frozen=True)
class SpeedSection:
    """Tokens of the prompt and of the generation to time; no repetitions time nothing."""

    prompt: int = 512
    generate: int = 128
    repetitions: int = 0


@dataclass(frozen=True)
class OutputSection:
    """Where everything goes, and the forms of the report."""

    directory: Path = Path("out")
    report: tuple[str, ...] = ("md", "json")


@dataclass(frozen=True)
class Job:
    """A whole job file."""

    model: ModelSection
    calibration: CalibrationSection
    quantize: QuantizeSection
    measure: MeasureSection
    tasks: TasksSection
    speed: SpeedSection
    output: OutputSection


_SECTIONS: dict[str, Callable[..., Any]] = {
    "model": ModelSection,
    "calibration": CalibrationSection,
    "quantize": QuantizeSection,
    "measure": MeasureSection,
    "tasks": TasksSection,
    "speed": SpeedSection,
    "output": OutputSection,
}


def load_jobs(path: Path) -> tuple[Job, ...]:
    """Read and check a job file: one job per source, in folders of their own if there are several.

    Usage names what is wrong and the nearest known key.
    """
    try:
        document = tomllib.loads(as_utf8(path.read_bytes()).decode())
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:
        raise Usage(f"{path} is not a TOML file: {error}") from error
    _check_names(path, "section", document, _SECTIONS)
    sections = {
        name: _section(path, name, kind, document.get(name, {})) for name, kind in _SECTIONS.items()
    }
    return _split(path, Job(**sections), document["model"]["source"])


def _split(path: Path, job: Job, given: str | list[str]) -> tuple[Job, ...]:
    if isinstance(given, str):
        return (replace(job, model=replace(job.model, source=_place(path.parent, given))),)
    names = [Path(source).name for source in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Usage(f"{path}: two sources are called {twice}", "each needs a folder of its name")
    return tuple(
        replace(
            job,
            model=replace(job.model, source=_place(path.parent, source)),
            output=replace(job.output, directory=job.output.directory / name),
        )
        for source, name in zip(given, names, strict=True)
    )


def _place(folder: Path, source: str) -> str:
    # what is not a folder beside the job file may be owner/name on the Hub
    local = folder / source
    try:
        return str(local) if local.exists() else source
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        raise Usage(f"{quoted(source, 80)} is not the name of a model") from error


def _section(path: Path, name: str, kind: Callable[..., Any], table: Any) -> Any:
    if not isinstance(table, dict):
        raise Usage(f"{path}: {name} must be a section: [{name}]")
    known = keys_of(name)
    _check_names(path, f"key in [{name}]", table, known)
    if name == "model" and "source" not in table:
        raise Usage(f"{path}: [model] needs a source", 'write source = "FOLDER"')
    for key, value in table.items():
        check_value(known[key], value, str(path))
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
    return kind(**_resolved(path.parent, name, kind, values))


def _resolved(folder: Path, name: str, kind: Callable[..., Any], values: dict[str, Any]) -> Any:
    # paths in a job file are relative to it
    if name == "calibration" and "text" in values:
        values["text"] = tuple(folder / text for text in values["text"])
    elif name == "measure" and "text" in values:
        values["text"] = folder / values["text"]
    elif name == "tasks":
        data = {task: folder / values.pop(task) for task in task_names() if task in values}
        values["data"] = data
    elif name == "speed" and values:
        # a section that is there times something
        values.setdefault("repetitions", 3)
    elif name == "output":
        values["directory"] = folder / values.get("directory", "out")
    return values


def _check_names(path: Path, what: str, table: dict[str, Any], known: Any) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
            raise Usage(f"{path}: unknown {what}: {name}", f"the nearest is {near[0]}")
