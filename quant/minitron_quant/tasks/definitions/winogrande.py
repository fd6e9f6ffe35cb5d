"""Winogrande: which of two words fills the gap of a sentence.

Formats: llama.cpp's CSV (number, sentence with _, first word, second word, 1 or 2), and the
dataset's JSON lines. llama-perplexity never reads the last line of a file that ends in one newline;
here it counts. It keeps doubled quotes as they stand; here they are CSV's one quote.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from minitron_quant.tasks.data_files import Place, is_json, read_records, read_rows
from minitron_quant.tasks.question import Continuation, Question, after_common, after_context
from minitron_quant.tasks.task import ChoiceTask

if TYPE_CHECKING:
    from minitron_engine.llama.model import Model

# scored from the gap's word on where fewer tokens than this follow it
_LEAST_TOKENS_AFTER = 3


def load(path: Path) -> list[Question]:
    """The questions of a file, in its order."""
    return _load_json(path) if is_json(path) else _load_csv(path)


def _load_csv(path: Path) -> list[Question]:
    questions: list[Question] = []
    for row in read_rows(path):
        if len(row.cells) != 5:
            raise row.error(
                f"{len(row.cells)} columns",
                "five columns: number, sentence with _, first word, second word, 1 or 2",
            )
        if not questions and row.cells[1] == "sentence":
            continue
        questions.append(_question(row, *row.cells[1:]))
    if not questions:
        raise Place(path, "line 1").error("a header and no questions")
    return questions


def _load_json(path: Path) -> list[Question]:
    questions = []
    for record in read_records(path):
        sentence, first, second = map(record.text, ("sentence", "option1", "option2"))
        answer = record.values.get("answer")
        questions.append(_question(record, sentence, first, second, answer))
    return questions


def _question(place: Place, sentence: str, first: str, second: str, answer: object) -> Question:
    before, gap, after = sentence.partition("_")
    if not gap:
        raise place.error("the sentence has no gap (_)")
    gold = place.index(answer, 2, first=1)
    choices = (before + first, after), (before + second, after)
    return Question(place.where, choices, frozenset([gold]))


def encode(model: Model, question: Question) -> list[Continuation]:
    """Score the tokens after the gap's word, but for the last (a full stop) where more remain.

    Where too little follows the gap, the word itself is scored too. llama-perplexity then takes the
    second word's first probability from a wrong place; this is what it means to compute.
    """
    common = after_common(model, question)
    shortest = min(len(item.tokens) - item.start for item in common)
    items = after_context(model, question) if shortest > _LEAST_TOKENS_AFTER else common
    return [
        Continuation(item.tokens[:-1], item.start) if len(item.tokens) - item.start > 1 else item
        for item in items
    ]


TASK = ChoiceTask(
    "Winogrande: which of two words fills the gap of a sentence.",
    lambda options: load(options.data),
    encode,
    normalize="tokens",
)
