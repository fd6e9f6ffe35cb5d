"""HellaSwag: which of four endings goes on with a situation.

Formats: llama.cpp's text, six lines a question (context, number of the right ending, four endings),
and the dataset's own JSON lines, cleaned as lm-evaluation-harness cleans them; that is also how the
text was made.
"""

import re
from pathlib import Path

from minitron_quant.tasks.files import (
    damaged,
    index_of,
    is_json,
    read_lines,
    read_records,
    text_of,
    texts_of,
)
from minitron_quant.tasks.question import Question

_LINES, _ENDINGS = 6, 4


def load(path: Path) -> list[Question]:
    """The questions of a file, in its order."""
    return _load_json(path) if is_json(path) else _load_text(path)


def _load_text(path: Path) -> list[Question]:
    lines = read_lines(path)
    if len(lines) % _LINES:
        raise damaged(
            path,
            f"line {len(lines)}",
            f"the file ends inside a question: {len(lines)} lines are not a multiple of 6",
            "six lines a question: context, number of the right ending, four endings",
        )
    questions = []
    for start in range(0, len(lines), _LINES):
        context, label, *endings = lines[start : start + _LINES]
        gold = index_of(path, f"line {start + 2}", label, _ENDINGS)
        questions.append(_question(f"line {start + 1}", context, endings, gold))
    return questions


def _load_json(path: Path) -> list[Question]:
    questions = []
    for where, record in read_records(path):
        if "ctx_b" in record:
            ending = text_of(path, where, record, "ctx_b").capitalize()
            situation = text_of(path, where, record, "ctx_a") + " " + ending
        else:
            situation = text_of(path, where, record, "ctx")
        label = text_of(path, where, record, "activity_label")
        endings = [_clean(text) for text in texts_of(path, where, record, "endings")]
        gold = index_of(path, where, record.get("label"), len(endings))
        questions.append(_question(where, _clean(f"{label}: {situation}"), endings, gold))
    return questions


def _question(where: str, context: str, endings: list[str], gold: int) -> Question:
    choices = tuple((context, f" {ending}") for ending in endings)
    return Question(where, choices, frozenset([gold]))


def _clean(text: str) -> str:
    # WikiHow's marks: [title] between sentences, other brackets are noise
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
