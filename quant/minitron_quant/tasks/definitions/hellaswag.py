"""HellaSwag: which of four endings continues a situation.

Formats: llama.cpp's text, six lines a question (context, number of the right ending, four endings),
and the dataset's own JSON lines, cleaned as lm-evaluation-harness cleans them; that is also how the
text was made.
"""

import re
from pathlib import Path

from minitron_quant.tasks.data_files import Place, is_json, read_lines, read_records
from minitron_quant.tasks.question import Question, after_common
from minitron_quant.tasks.subsampling import sample_shuffled
from minitron_quant.tasks.task import ChoiceTask

_LINES, _ENDINGS = 6, 4


def load(path: Path) -> list[Question]:
    """The questions of a file, in its order."""
    return _load_json(path) if is_json(path) else _load_text(path)


def _load_text(path: Path) -> list[Question]:
    lines = read_lines(path)
    if len(lines) % _LINES:
        raise Place(path, f"line {len(lines)}").error(
            f"the file ends inside a question: {len(lines)} lines are not a multiple of 6",
            "six lines a question: context, number of the right ending, four endings",
        )
    questions = []
    for start in range(0, len(lines), _LINES):
        context, label, *endings = lines[start : start + _LINES]
        gold = Place(path, f"line {start + 2}").index(label, _ENDINGS)
        questions.append(_question(f"line {start + 1}", context, endings, gold))
    return questions


def _load_json(path: Path) -> list[Question]:
    questions = []
    for record in read_records(path):
        if "ctx_b" in record.values:
            situation = f"{record.text('ctx_a')} {record.text('ctx_b').capitalize()}"
        else:
            situation = record.text("ctx")
        context = _clean(f"{record.text('activity_label')}: {situation}")
        endings = [_clean(text) for text in record.texts("endings")]
        gold = record.index(record.values.get("label"), len(endings))
        questions.append(_question(record.where, context, endings, gold))
    return questions


def _question(where: str, context: str, endings: list[str], gold: int) -> Question:
    choices = tuple((context, f" {ending}") for ending in endings)
    return Question(where, choices, frozenset([gold]))


def _clean(text: str) -> str:
    # WikiHow's marks: [title] between sentences, other brackets are noise
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


TASK = ChoiceTask(
    "HellaSwag: which of four endings continues a situation.",
    lambda options: load(options.data),
    after_common,
    normalize="tokens",
    select=sample_shuffled,
)
