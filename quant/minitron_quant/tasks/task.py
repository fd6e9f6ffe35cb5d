"""What a task is: how its data are read, which tokens are scored, which questions a limit takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from minitron_core.errors import Usage
from minitron_quant.tasks.question import Encode, Question
from minitron_quant.tasks.subsampling import sample

if TYPE_CHECKING:
    from pathlib import Path

    from minitron_core.progress import Progress
    from minitron_engine.llama.model import Model
    from minitron_quant.tasks.answers import Answers
    from minitron_quant.tasks.likelihood import ScoreSettings

_SHOTS = 5


@dataclass(frozen=True)
class TaskOptions:
    """Where a task's data are, and what to take of them.

    limit: at most this many questions. normalize: what a choice's likelihood is divided by:
    tokens, characters or none; None for the task's default. shots: worked examples before each
    question, from the file `shots_data`. n_predict: tokens of a written answer.
    """

    data: Path
    limit: int | None = None
    normalize: str | None = None
    shots: int | None = None
    shots_data: Path | None = None
    n_predict: int = 256


def take_shots(examples: list[str], shots: int | None, name: str) -> list[str]:
    """The first `shots` of the examples (5 for None) that `name` has; Usage where it has fewer."""
    count = _SHOTS if shots is None else shots
    if len(examples) < count:
        raise Usage(
            f"{name} has {len(examples)} examples, and --shots takes {count}",
            "give a file with more, or a smaller --shots",
        )
    return examples[:count]


@dataclass(frozen=True)
class Problem:
    """A prompt that the answer follows, and the right result. where: its place in the data."""

    where: str
    prompt: str
    result: str


@dataclass(frozen=True)
class PreparedTask:
    """Questions, ready to be answered by any number of models.

    chance: the share of right answers that guessing gives. answer: gives a model's answers, in the
    order of the questions.
    """

    questions: Sequence[Question] | Sequence[Problem]
    chance: float
    answer: Callable[[Model, ScoreSettings, Progress], Answers]


@dataclass(frozen=True)
class ChoiceTask:
    """A task whose answers are choices, compared by their likelihood.

    help: a line for users. encode: which tokens of a choice are scored. normalize: the default of
    TaskOptions. select: which of so many questions a limit takes. examples: whether it takes shots.
    """

    help: str
    load: Callable[[TaskOptions], list[Question]]
    encode: Encode
    normalize: str
    select: Callable[[int, int | None], list[int]] = sample
    examples: bool = False

    def prepare(self, options: TaskOptions) -> PreparedTask:
        """Read and select the questions; Usage for shots where the task has no examples."""
        from minitron_quant.tasks.answers import answer_choices

        if not self.examples and (options.shots or options.shots_data):
            raise Usage("this task takes no examples", "leave out --shots")
        questions = self.load(options)
        chosen = [questions[number] for number in self.select(len(questions), options.limit)]
        shares = [len(question.gold) / len(question.choices) for question in chosen]
        normalize = options.normalize or self.normalize
        answer = partial(answer_choices, chosen, self.encode, normalize)
        return PreparedTask(chosen, sum(shares) / len(shares), answer)


@dataclass(frozen=True)
class GenerationTask:
    """A task whose answers the model writes.

    help: a line for users. stop: strings that end an answer. extract: the result in an answer.
    """

    help: str
    load: Callable[[TaskOptions], list[Problem]]
    stop: tuple[str, ...]
    extract: Callable[[str], str]

    def prepare(self, options: TaskOptions) -> PreparedTask:
        """Read and select the problems; Usage for normalize: there are no choices."""
        from minitron_quant.tasks.answers import answer_problems

        if options.normalize:
            raise Usage("a written answer has no likelihood", "leave out --normalize")
        problems = self.load(options)
        chosen = [problems[number] for number in sample(len(problems), options.limit)]
        return PreparedTask(chosen, 0.0, partial(answer_problems, chosen, self, options.n_predict))


Task = ChoiceTask | GenerationTask
