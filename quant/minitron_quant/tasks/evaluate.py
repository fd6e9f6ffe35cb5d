"""Models on a task: scores with intervals, and what changed from a reference."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from minitron_core.progress import Event, Progress, ignore
from minitron_engine.llama.settings import GpuLayers, ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.levels import level_of
from minitron_quant.model_files import open_model_files
from minitron_quant.perplexity.table import MIB
from minitron_quant.tasks.answers import Answers
from minitron_quant.tasks.likelihood import ScoreSettings
from minitron_quant.tasks.registry import TASKS, Prepared, TaskOptions
from minitron_quant.tasks.statistics import Flips, compare, wilson

_FLIP_KEYS = tuple(field.name for field in fields(Flips))


@dataclass(frozen=True)
class TasksSettings:
    """Which files to try on which task; `reference` may be one of the models, or None."""

    models: tuple[Path, ...]
    task: str
    options: TaskOptions
    score: ScoreSettings
    gpu_layers: GpuLayers = "auto"
    reference: Path | None = None


@dataclass(frozen=True)
class TaskRow:
    """One file on a task; scores in percent, the interval is of 95 %.

    chance_pct: what guessing gives. shortened: questions that lost their beginning, being longer
    than the trained context. flips: None without a reference and for the reference itself.
    """

    model: str
    level: str
    size_mib: float
    questions: int
    correct: int
    score_pct: float
    score_low_pct: float
    score_high_pct: float
    chance_pct: float
    shortened: int
    device: str
    flips: Flips | None = None

    def document(self) -> dict[str, Any]:
        """The row as one level of keys; those of the flips are null where there are none."""
        document = asdict(self)
        flips = document.pop("flips") or dict.fromkeys(_FLIP_KEYS)
        return document | flips


def evaluate(
    settings: TasksSettings, progress: Progress = ignore
) -> Iterator[tuple[TaskRow, Answers]]:
    """Try the models one after the other, the reference first, on the same questions."""
    prepared = TASKS[settings.task].prepare(settings.options)
    others = [path for path in settings.models if path != settings.reference]
    paths = [settings.reference, *others] if settings.reference else others
    base: Answers | None = None
    for number, path in enumerate(paths):
        row, answers = _try(path, prepared, settings, _part_of(progress, number, len(paths)))
        if base is not None:
            row = replace(row, flips=_flips(answers, base))
        elif settings.reference:
            base = answers
        yield row, answers


def _part_of(progress: Progress, number: int, models: int) -> Progress:
    # one bar over all files
    def listen(event: Event) -> None:
        progress(replace(event, done=number * event.total + event.done, total=models * event.total))

    return listen


def _try(
    path: Path, prepared: Prepared, settings: TasksSettings, progress: Progress
) -> tuple[TaskRow, Answers]:
    shards = open_model_files(path)

    def listen(event: Event) -> None:
        progress(replace(event, detail=f"{path.name}: {event.detail}"))

    with open_model(ModelSettings(path, settings.gpu_layers, settings.score.n_batch)) as model:
        answers = prepared.answer(model, settings.score, listen)
        device = model.device
    correct, total = sum(answer.right for answer in answers.answers), len(answers.answers)
    low, high = wilson(correct, total)
    row = TaskRow(
        model=path.name,
        level=level_of(shards[0]),
        size_mib=sum(shard.size for shard in shards) / MIB,
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


def _flips(answers: Answers, base: Answers) -> Flips:
    return compare(
        [answer.chosen for answer in answers.answers],
        [answer.right for answer in answers.answers],
        [answer.chosen for answer in base.answers],
        [answer.right for answer in base.answers],
    )
