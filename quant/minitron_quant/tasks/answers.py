"""A model's answers to questions with choices and to problems."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minitron_core.progress import Event, Progress
from minitron_engine.llama.model import Model
from minitron_quant.tasks.batch_generate import GreedySettings, generate_batch
from minitron_quant.tasks.likelihood import Array, Likelihood, ScoreSettings, likelihoods
from minitron_quant.tasks.prefix_sharing import shorten
from minitron_quant.tasks.question import Encode, Question
from minitron_quant.tasks.task import GenerationTask, Problem

# questions that are in memory as tokens at a time
_WINDOW = 256


@dataclass(frozen=True)
class Answer:
    """What a model answered: the index of a choice, or what it wrote. scores: one per choice.

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


def answer_choices(
    questions: Sequence[Question],
    encode: Encode,
    normalize: str,
    model: Model,
    settings: ScoreSettings,
    progress: Progress,
) -> Answers:
    """Answer every question with the choice that the model finds likeliest.

    Texts beyond the trained context lose their beginning, behind BOS.
    """
    answers: list[Answer] = []
    shortened = 0
    right = 0
    progress(Event("tasks", 0, len(questions), "questions"))
    for start in range(0, len(questions), _WINDOW):
        window = questions[start : start + _WINDOW]
        encoded = [encode(model, question) for question in window]
        fitting = [
            [shorten(item, model.n_ctx_train, int(model.add_bos)) for item in items]
            for items in encoded
        ]
        shortened += sum(
            any(short is not item for short, item in zip(shorts, items, strict=True))
            for shorts, items in zip(fitting, encoded, strict=True)
        )
        found = likelihoods(model, [item for items in fitting for item in items], settings)
        for question in window:
            scores = _choice_scores(question, [next(found) for _ in question.choices], normalize)
            best = int(np.argmax(scores))
            chosen = best in question.gold
            answers.append(Answer(question.where, best, chosen, tuple(map(float, scores))))
            right += chosen
            detail = f"{100 * right / len(answers):.2f} %"
            progress(Event("tasks", len(answers), len(questions), "questions", detail))
    return Answers(answers, shortened)


def answer_problems(
    problems: Sequence[Problem],
    task: GenerationTask,
    n_predict: int,
    model: Model,
    settings: ScoreSettings,
    progress: Progress,
) -> Answers:
    """Answer every problem in writing, and compare the result with the right one."""

    def on_done(count: int) -> None:
        progress(Event("tasks", count, len(problems), "questions"))

    how = GreedySettings(task.stop, n_predict, settings.n_batch, settings.threads)
    prompts = [problem.prompt for problem in problems]
    on_done(0)
    texts, shortened = generate_batch(model, prompts, how, on_done)
    results = [task.extract(text) for text in texts]
    answers = [
        Answer(problem.where, result, result == problem.result)
        for problem, result in zip(problems, results, strict=True)
    ]
    return Answers(answers, shortened)


def _choice_scores(question: Question, likelihoods: list[Likelihood], normalize: str) -> Array:
    """One number per choice, higher is likelier: Σ ln p, or that per token or per character."""
    totals = np.array([item.log_p.sum() for item in likelihoods])
    if normalize == "tokens":
        return totals / [len(item.log_p) for item in likelihoods]
    if normalize == "characters":
        return totals / [max(len(answer.strip()), 1) for _, answer in question.choices]
    return totals
