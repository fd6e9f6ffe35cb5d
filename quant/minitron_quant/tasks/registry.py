"""The tasks by name: how each file is read, which tokens count, which questions a limit takes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from minitron_core.errors import Usage
from minitron_core.progress import Progress
from minitron_engine.llama.model import Model
from minitron_quant.tasks import (
    arc,
    gsm8k,
    hellaswag,
    mmlu,
    multiple_choice,
    subsampling,
    winogrande,
)
from minitron_quant.tasks.answers import Answers, choose
from minitron_quant.tasks.likelihood import ScoreSettings
from minitron_quant.tasks.question import Encode, Question, after_common, after_context


@dataclass(frozen=True)
class TaskOptions:
    """Where a task's data are, and what to take of them.

    limit: at most this many questions. normalize: what a choice's likelihood is divided by:
    tokens, characters or none; None for what the task usually has. shots: examples before each
    question, of the file `shots_data`. n_predict: tokens of a written answer.
    """

    data: Path
    limit: int | None = None
    normalize: str | None = None
    shots: int | None = None
    shots_data: Path | None = None
    n_predict: int = 256


class Prepared(Protocol):
    """A task with its questions read, ready for any number of models."""

    @property
    def chance(self) -> float:
        """The share that guessing gets right."""
        ...

    def answer(self, model: Model, settings: ScoreSettings, progress: Progress) -> Answers:
        """The model's answers, in the order of the questions."""
        ...


class Task(Protocol):
    """A kind of task."""

    def prepare(self, options: TaskOptions) -> Prepared:
        """Read and choose the questions."""
        ...


@dataclass(frozen=True)
class ChoiceTask:
    """A task of questions with choices; `normalize` is what it is usually scored with."""

    load: Callable[[TaskOptions], list[Question]]
    encode: Encode
    normalize: str
    select: Callable[[int, int | None], list[int]] = subsampling.drawn
    examples: bool = False

    def prepare(self, options: TaskOptions) -> "PreparedChoices":
        """Read and choose the questions; Usage for examples where the task has none."""
        if not self.examples and (options.shots or options.shots_data):
            raise Usage("this task is asked without examples", "leave out --shots")
        questions = self.load(options)
        chosen = [questions[number] for number in self.select(len(questions), options.limit)]
        return PreparedChoices(chosen, self.encode, options.normalize or self.normalize)


@dataclass(frozen=True)
class WrittenTask:
    """A task whose answers the model writes."""

    def prepare(self, options: TaskOptions) -> gsm8k.PreparedProblems:
        """Read and choose the questions; Usage where there are no choices to normalize."""
        if options.normalize:
            raise Usage("a written answer has no likelihood", "leave out --normalize")
        return gsm8k.prepare(
            options.data, options.limit, options.shots, options.shots_data, options.n_predict
        )


@dataclass(frozen=True)
class PreparedChoices:
    """Questions with choices, ready to be answered."""

    questions: list[Question]
    encode: Encode
    normalize: str

    @property
    def chance(self) -> float:
        """The share that guessing gets right."""
        shares = [len(question.gold) / len(question.choices) for question in self.questions]
        return sum(shares) / len(shares)

    def answer(self, model: Model, settings: ScoreSettings, progress: Progress) -> Answers:
        """The model's answers, in the order of the questions."""
        return choose(model, self.questions, self.encode, self.normalize, settings, progress)


def _in_order(count: int, limit: int | None) -> list[int]:
    # neighbours share the examples of their subject
    return sorted(subsampling.drawn(count, limit))


TASKS: dict[str, Task] = {
    "hellaswag": ChoiceTask(
        lambda options: hellaswag.load(options.data), after_common, "tokens", subsampling.shuffled
    ),
    "winogrande": ChoiceTask(
        lambda options: winogrande.load(options.data), winogrande.encode, "tokens"
    ),
    "arc": ChoiceTask(lambda options: arc.load(options.data), after_context, "characters"),
    "mmlu": ChoiceTask(
        lambda options: mmlu.load(options.data, options.shots, options.shots_data),
        after_common,
        "none",
        _in_order,
        examples=True,
    ),
    "multiple-choice": ChoiceTask(
        lambda options: multiple_choice.load(options.data), after_common, "tokens"
    ),
    "gsm8k": WrittenTask(),
}
