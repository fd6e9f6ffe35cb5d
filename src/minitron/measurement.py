"""Measure models: perplexity and divergence, tasks, speed, what is in a file, what fits."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minitron_core.progress import Progress, ignore
from minitron_engine.llama.settings import ContextSettings
from minitron_quant.advise import Budget, Fit
from minitron_quant.advise import advise as advise_model
from minitron_quant.bench.run import BenchPlan
from minitron_quant.inspect.description import describe
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import measure
from minitron_quant.tasks.answers import Answers
from minitron_quant.tasks.evaluate import TaskRow, TasksSettings, evaluate


def perplexity(settings: MeasureSettings, progress: Progress = ignore) -> Iterator[Row]:
    """Measure models on a text and yield a row for each, in the order of the settings.

    With a reference its row comes first, and the others have accuracy in percent and divergence
    in nats per token. `Row.ppl` and `Row.ppl_error` are those of llama-perplexity.
    Raises Usage for a text that is too short, NotFound, Damaged, OutOfResources.
    """
    return measure(settings, progress)


def tasks(
    settings: TasksSettings, progress: Progress = ignore
) -> Iterator[tuple[TaskRow, Answers]]:
    """Score models on questions; yield a row and the answers of each, the reference first.

    Scores are in percent, with 95 % intervals (Wilson). Raises NotFound or Damaged for the data.
    """
    return evaluate(settings, progress)


def bench(plan: BenchPlan, progress: Progress = ignore) -> Iterator[dict[str, Any]]:
    """Measure speed; yield a row with llama-bench's fields for each model, setting and test.

    Speeds (avg_ts) are in tokens per second, times in nanoseconds, memory in bytes.
    """
    return plan.rows(progress)


def inspect(model: Path, *, with_tensors: bool = False) -> dict[str, Any]:
    """Describe a GGUF file from its header: metadata, types, sizes in bytes, bits per weight.

    A first shard stands for all. Raises NotFound, Damaged.
    """
    return describe(model, with_tensors)


def advise(
    model: Path,
    settings: ContextSettings,
    budget: Budget,
    quality: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Fit]:
    """How each level fits into memory, the smallest first; all sizes in bytes.

    model: a folder of levels, or a full-precision file that levels could be made of.
    quality: measured values by level, as `minitron_quant.advise.measured` reads them from a report.
    Raises NotFound for a folder without models.
    """
    return advise_model(model, settings, budget, quality)
