"""ARC: questions from school science, asked as lm-evaluation-harness asks them.

Formats: AI2's JSON lines (question.stem, question.choices), the Hub's (question, choices.text), and
instruction data (one text with "Answer1: … Answer2: …" in it).
"""

import re
from pathlib import Path
from typing import Any

from minitron_quant.tasks.files import damaged, read_records, text_of, texts_of
from minitron_quant.tasks.question import Question

_INSTRUCTION = re.compile(
    r"(?:[^:\n]*question: )?(?P<stem>.*?)\s*(?P<choices>\bAnswer1: .*?)\s*Answer format:", re.DOTALL
)


def load(path: Path) -> list[Question]:
    """The questions of a file, in its order."""
    questions = []
    for where, record in read_records(path):
        stem, texts, labels, key = _parts(path, where, record)
        if key not in labels:
            raise damaged(path, where, f"the answer is {key!r}, none of {', '.join(labels)}")
        context = f"Question: {stem}\nAnswer:"
        choices = tuple((context, f" {text}") for text in texts)
        questions.append(Question(where, choices, frozenset([labels.index(key)])))
    return questions


def _parts(
    path: Path, where: str, record: dict[str, Any]
) -> tuple[str, list[str], list[str], object]:
    """The question, its choices, their labels, and the label of the right one."""
    if "instruction" in record:
        return _instruction(path, where, record)
    columns: Any
    question = record.get("question")
    if isinstance(question, dict):
        stem, choices = text_of(path, where, question, "stem"), question.get("choices")
        if not isinstance(choices, list) or not all(isinstance(item, dict) for item in choices):
            raise damaged(path, where, "no list 'choices'")
        columns = {key: [item.get(key) for item in choices] for key in ("text", "label")}
    else:
        stem, columns = text_of(path, where, record, "question"), record.get("choices")
        if not isinstance(columns, dict):
            raise damaged(path, where, "no object 'choices'")
    texts, labels = (texts_of(path, where, columns, key) for key in ("text", "label"))
    if len(texts) != len(labels):
        raise damaged(path, where, f"{len(texts)} choices and {len(labels)} labels")
    return stem, texts, labels, record.get("answerKey")


def _instruction(
    path: Path, where: str, record: dict[str, Any]
) -> tuple[str, list[str], list[str], object]:
    found = _INSTRUCTION.match(text_of(path, where, record, "instruction"))
    if not found:
        raise damaged(path, where, "no choices 'Answer1: …' in the instruction")
    _, *parts = re.split(r"\s*\bAnswer(\d+): ", " " + found["choices"])
    labels = [f"answer{number}" for number in parts[::2]]
    return found["stem"], parts[1::2], labels, record.get("answer")
