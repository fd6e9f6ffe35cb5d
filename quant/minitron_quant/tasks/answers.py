"""A model's answers to multiple-choice questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minitron_core.progress import Event, Progress
from minitron_engine.llama.model import Model
from minitron_quant.tasks.likelihood import ScoreSettings, likelihoods
from minitron_quant.tasks.question import Encode, Question, cut, score

# questions that are in memory as tokens at a time
_WINDOW = 256


@dataclass(frozen=True)
class Answer:
    """What a model chose: an index or, where it wrote freely, a text. scores: one per choice.

    where: the question's place in the data.
    """

    where: str
    chosen: int | str
    right: bool
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Answers:
    """Answers in the order of the questions; `shortened`: how many lost their beginning."""

    answers: list[Answer]
    shortened: int


def choose(
    model: Model,
    questions: Sequence[Question],
    encode: Encode,
    normalize: str,
    settings: ScoreSettings,
    progress: Progress,
) -> Answers:
    """Answer every question with the choice that the model finds likeliest.

    Texts beyond the trained context lose their beginning, behind BOS.
    """
    answers: list[Answer] = []
    shortened = 0
    right = 0
    for start in range(0, len(questions), _WINDOW):
        window = questions[start : start + _WINDOW]
        encoded = [encode(model, question) for question in window]
        fitting = [
            [cut(item, model.n_ctx_train, int(model.add_bos)) for item in items]
            for items in encoded
        ]
        shortened += sum(
            any(short is not item for short, item in zip(shorts, items, strict=True))
            for shorts, items in zip(fitting, encoded, strict=True)
        )
        found = likelihoods(model, [item for items in fitting for item in items], settings)
        for question in window:
            scores = score(question, [next(found) for _ in question.choices], normalize)
            best = int(np.argmax(scores))
            chosen = best in question.gold
            answers.append(Answer(question.where, best, chosen, tuple(map(float, scores))))
            right += chosen
            detail = f"{100 * right / len(answers):.2f} %"
            progress(Event("tasks", len(answers), len(questions), "questions", detail))
    return Answers(answers, shortened)
