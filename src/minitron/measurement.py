"""Measure models: perplexity and divergence, tasks, speed, and what is in a file.

Each function loads what it measures with: a command needs one of them, and to load all takes longer
than a short text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minitron_core.progress import Progress, ignore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from minitron_quant.bench.run import BenchPlan
    from minitron_quant.perplexity.measures import Row
    from minitron_quant.perplexity.settings import MeasureSettings
    from minitron_quant.tasks.answers import Answers
    from minitron_quant.tasks.evaluate import TaskRow, TasksSettings


def perplexity(settings: MeasureSettings, progress: Progress = ignore) -> Iterator[Row]:
    """Measure models on a text and yield a row for each, in the order of the settings.

    With a reference its row comes first, and the others have accuracy in percent and divergence
    in nats per token. `Row.ppl` and `Row.ppl_error` are those of llama-perplexity.
    Raises Usage for a text that is too short, NotFound, Damaged, OutOfResources.
    """
    from minitron_quant.perplexity.table import measure

    return measure(settings, progress)


def tasks(
    settings: TasksSettings, progress: Progress = ignore
) -> Iterator[tuple[TaskRow, Answers]]:
    """Score models on questions; yield a row and the answers of each, the reference first.

    Scores are in percent, with 95 % intervals (Wilson). Raises NotFound or Damaged for the data.
    """
    from minitron_quant.tasks.evaluate import evaluate

    return evaluate(settings, progress)


def bench(plan: BenchPlan, progress: Progress = ignore) -> Iterator[dict[str, Any]]:
    """Measure speed; yield a row with llama-bench's fields for each model, setting and test.

    Speeds (avg_ts) are in tokens per second, times in nanoseconds, memory in bytes.
    """
    return plan.rows(progress)


def inspect(
    model: Path, *, with_tensors: bool = False, with_hashes: bool = False
) -> dict[str, Any]:
    """Describe a GGUF file from its header: metadata, types, sizes in bytes, bits per weight.

    A first shard stands for all. with_hashes: also the SHA-256 of each file, which reads all of it.
    Raises NotFound, Damaged.
    """
    from minitron_quant.inspect.description import describe

    return describe(model, with_tensors, with_hashes)
