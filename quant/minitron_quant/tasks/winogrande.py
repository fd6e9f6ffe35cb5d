"""Winogrande: which of two words belongs into the gap of a sentence.

Formats: llama.cpp's CSV (number, sentence with _, first word, second word, 1 or 2), and the
dataset's JSON lines. llama-perplexity never reads the last line of a file that ends in one newline;
here it counts. It keeps doubled quotes as they stand; here they are CSV's one quote.
"""

from pathlib import Path

from minitron_engine.llama.model import Model
from minitron_quant.tasks.files import damaged, index_of, is_json, read_records, read_rows, text_of
from minitron_quant.tasks.prefix_sharing import Continuation
from minitron_quant.tasks.question import Question, after_common, after_context

# scored from the gap's word on where fewer tokens than this follow it
_LEAST_TOKENS_AFTER = 3


def load(path: Path) -> list[Question]:
    """The questions of a file, in its order."""
    return _load_json(path) if is_json(path) else _load_csv(path)


def _load_csv(path: Path) -> list[Question]:
    questions: list[Question] = []
    for where, row in read_rows(path):
        if len(row) != 5:
            raise damaged(
                path,
                where,
                f"{len(row)} columns",
                "five columns: number, sentence with _, first word, second word, 1 or 2",
            )
        if not questions and row[1] == "sentence":
            continue
        questions.append(_question(path, where, tuple(row[1:4]), row[4]))
    if not questions:
        raise damaged(path, "line 1", "a header and no questions")
    return questions


def _load_json(path: Path) -> list[Question]:
    questions = []
    for where, record in read_records(path):
        texts = [text_of(path, where, record, key) for key in ("sentence", "option1", "option2")]
        questions.append(_question(path, where, tuple(texts), record.get("answer")))
    return questions


def _question(path: Path, where: str, texts: tuple[str, ...], answer: object) -> Question:
    sentence, first, second = texts
    before, gap, after = sentence.partition("_")
    if not gap:
        raise damaged(path, where, "the sentence has no gap (_)")
    gold = index_of(path, where, answer, 2, first=1)
    return Question(where, ((before + first, after), (before + second, after)), frozenset([gold]))


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
