"""The tasks by name: how each file is read, which tokens count, which questions a limit takes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from minitron_engine.model import Model
from minitron_engine.progress import Progress
from minitron_quant.measure.tasks import hellaswag, multiple_choice, selection, winogrande
from minitron_quant.measure.tasks.answers import Answers, choose
from minitron_quant.measure.tasks.likelihood import ScoreSettings
from minitron_quant.measure.tasks.question import Encode, Question, after_common


@dataclass(frozen=True)
class TaskOptions:
    """Where a task's data are, and what to take of them.

    limit: at most this many questions. normalize: what a choice's likelihood is divided by:
    tokens, characters or none; None for what the task usually has.
    """

    data: Path
    limit: int | None = None
    normalize: str | None = None


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
    select: Callable[[int, int | None], list[int]] = selection.drawn

    def prepare(self, options: TaskOptions) -> "PreparedChoices":
        """Read and choose the questions."""
        questions = self.load(options)
        chosen = [questions[number] for number in self.select(len(questions), options.limit)]
        return PreparedChoices(chosen, self.encode, options.normalize or self.normalize)


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


TASKS: dict[str, Task] = {
    "winogrande": ChoiceTask(
        lambda options: winogrande.load(options.data), winogrande.encode, "tokens"
    ),
    "hellaswag": ChoiceTask(
        lambda options: hellaswag.load(options.data), after_common, "tokens", selection.shuffled
    ),
    "multiple-choice": ChoiceTask(
        lambda options: multiple_choice.load(options.data), after_common, "tokens"
    ),
}
