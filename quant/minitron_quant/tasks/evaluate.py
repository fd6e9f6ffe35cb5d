"""Models on a task: scores with intervals, and the changes from a reference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from minitron_core.progress import Event, Progress, ignore
from minitron_engine.llama.settings import EVERY_GPU, GpuLayers, ModelSettings, Placement
from minitron_engine.loading import open_model
from minitron_quant.levels import level_of
from minitron_quant.model_files import open_model_files
from minitron_quant.perplexity.measures import Column, columns_of, definition
from minitron_quant.tasks.answers import Answers
from minitron_quant.tasks.likelihood import ScoreSettings
from minitron_quant.tasks.registry import task_named
from minitron_quant.tasks.statistics import Flips, compare_answers, wilson_interval
from minitron_quant.tasks.task import PreparedTask, TaskOptions

_MIB = 1 << 20


@dataclass(frozen=True)
class TasksSettings:
    """Which models on which task; `reference` may be one of the models, or None."""

    models: tuple[Path, ...]
    task: str
    options: TaskOptions
    score: ScoreSettings
    gpu_layers: GpuLayers = "auto"
    reference: Path | None = None
    placement: Placement = EVERY_GPU


@dataclass(frozen=True)
class TaskRow:
    """One file on a task; scores in percent, with their 95 % interval.

    chance_pct: the score of guessing. shortened: questions that lost their beginning because they
    are longer than the trained context. flips: None without a reference and for the reference.
    """

    model: str
    level: str
    size_mib: float = field(metadata=definition("Size (MB)", "mib"))
    questions: int = field(metadata=definition("Questions", "d"))
    correct: int
    score_pct: float = field(metadata=definition("Score (%)", ".2f"))
    score_low_pct: float = field(metadata=definition("95 % from", ".2f"))
    score_high_pct: float = field(metadata=definition("to", ".2f"))
    chance_pct: float = field(metadata=definition("Chance (%)", ".2f"))
    shortened: int
    device: str
    flips: Flips | None = None

    def document(self) -> dict[str, Any]:
        """The row as one level of keys; those of the flips are null where there are none."""
        document = asdict(self)
        flips = document.pop("flips") or dict.fromkeys(each.name for each in fields(Flips))
        return document | flips


def task_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of a table of rows, given as documents; those of flips with a reference only."""
    return columns_of((TaskRow, Flips), rows)


def evaluate(
    settings: TasksSettings, progress: Progress = ignore
) -> Iterator[tuple[TaskRow, Answers]]:
    """Evaluate the models one after the other, the reference first, on the same questions."""
    prepared = task_named(settings.task).prepare(settings.options)
    others = [path for path in settings.models if path != settings.reference]
    paths = [settings.reference, *others] if settings.reference else others
    base: Answers | None = None
    for number, path in enumerate(paths):

        def report(event: Event, number: int = number, name: str = path.name) -> None:
            # one bar over all files
            done, total = number * event.total + event.done, len(paths) * event.total
            progress(replace(event, done=done, total=total, detail=f"{name}: {event.detail}"))

        row, answers = _evaluate_model(path, prepared, settings, report)
        if base is not None:
            row = replace(row, flips=compare_answers(answers.answers, base.answers))
        elif settings.reference:
            base = answers
        yield row, answers


def _evaluate_model(
    path: Path, prepared: PreparedTask, settings: TasksSettings, progress: Progress
) -> tuple[TaskRow, Answers]:
    shards = open_model_files(path)
    loading = ModelSettings(
        path, settings.gpu_layers, settings.score.n_batch, placement=settings.placement
    )
    with open_model(loading) as model:
        answers = prepared.answer(model, settings.score, progress)
        device = model.device
    correct, total = sum(answer.right for answer in answers.answers), len(answers.answers)
    low, high = wilson_interval(correct, total)
    row = TaskRow(
        model=path.name,
        level=level_of(shards[0]),
        size_mib=sum(shard.size for shard in shards) / _MIB,
        questions=total,
        correct=correct,
        score_pct=100 * correct / total,
        score_low_pct=100 * low,
        score_high_pct=100 * high,
        chance_pct=100 * prepared.chance,
        shortened=answers.shortened,
        device=device,
    )
    return row, answers
