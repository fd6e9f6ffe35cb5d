"""ARC: questions from school science, asked as lm-evaluation-harness asks them.

Formats: AI2's JSON lines (question.stem, question.choices), the Hub's (question, choices.text), and
instruction data (one text with "Answer1: … Answer2: …" in it).
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from minitron_core.quoting import quoted
from minitron_quant.tasks.data_files import Record, read_records
from minitron_quant.tasks.question import Question, after_context
from minitron_quant.tasks.task import ChoiceTask

_INSTRUCTION = re.compile(
    r"(?:[^:\n]*question: )?(?P<stem>.*?)\s*(?P<choices>\bAnswer1: .*?)\s*Answer format:", re.DOTALL
)


def load(path: Path) -> list[Question]:
    """The questions of a file, in its order."""
    questions = []
    for record in read_records(path):
        stem, texts, labels, key = _parts(record)
        if key not in labels:
            raise record.error(f"the answer is {quoted(key)}, not one of {', '.join(labels)}")
        context = f"Question: {stem}\nAnswer:"
        choices = tuple((context, f" {text}") for text in texts)
        questions.append(Question(record.where, choices, frozenset([labels.index(key)])))
    return questions


def _parts(record: Record) -> tuple[str, list[str], list[str], Any]:
    """The question, its choices, their labels, and the label of the right one."""
    values = record.values
    if "instruction" in values:
        return _instruction(record)
    columns: Any
    if isinstance(values.get("question"), dict):
        question = replace(record, values=values["question"])
        stem, choices = question.text("stem"), question.values.get("choices")
        if not isinstance(choices, list) or not all(isinstance(item, dict) for item in choices):
            raise record.error("no list 'choices'")
        columns = {key: [item.get(key) for item in choices] for key in ("text", "label")}
    else:
        stem, columns = record.text("question"), values.get("choices")
        if not isinstance(columns, dict):
            raise record.error("no object 'choices'")
    texts, labels = map(replace(record, values=columns).texts, ("text", "label"))
    if len(texts) != len(labels):
        raise record.error(f"{len(texts)} choices and {len(labels)} labels")
    return stem, texts, labels, values.get("answerKey")


def _instruction(record: Record) -> tuple[str, list[str], list[str], Any]:
    found = _INSTRUCTION.match(record.text("instruction"))
    if not found:
        raise record.error("no choices 'Answer1: …' in the instruction")
    _, *parts = re.split(r"\s*\bAnswer(\d+): ", " " + found["choices"])
    labels = [f"answer{number}" for number in parts[::2]]
    return found["stem"], parts[1::2], labels, record.values.get("answer")


TASK = ChoiceTask(
    "ARC: questions from school science.",
    lambda options: load(options.data),
    after_context,
    normalize="characters",
)
