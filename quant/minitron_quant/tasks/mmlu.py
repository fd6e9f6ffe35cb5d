"""MMLU: examinations of 57 subjects, five worked examples before each question.

Formats: the dataset's CSV (question, four choices, answer; with or without a header) in files named
SUBJECT_test.csv with SUBJECT_dev.csv beside them or in ../dev, one file or a folder of them; and
JSON lines with question, choices, answer and subject. Asked as lm-evaluation-harness asks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minitron_core.errors import NotFound, Usage
from minitron_quant.tasks.files import (
    damaged,
    index_of,
    is_json,
    read_records,
    read_rows,
    text_of,
    texts_of,
)
from minitron_quant.tasks.question import Question

SHOTS = 5
_LETTERS = "ABCD"


@dataclass(frozen=True)
class _Item:
    where: str
    subject: str
    text: str
    gold: int

    @property
    def solved(self) -> str:
        return f"{self.text} {_LETTERS[self.gold]}\n\n"


def load(data: Path, shots: int | None, shots_data: Path | None) -> list[Question]:
    """The questions of a file or a folder, each behind `shots` examples of its subject."""
    count = SHOTS if shots is None else shots
    questions = []
    for path in _files(data):
        items = _read(path)
        examples: list[_Item] = []
        if count:
            examples = _read(shots_data or _examples_of(path))
        heads = {
            subject: _head(subject, [one for one in examples if one.subject == subject], count)
            for subject in dict.fromkeys(item.subject for item in items)
        }
        questions += [_question(item, heads[item.subject]) for item in items]
    return questions


def _files(data: Path) -> list[Path]:
    if not data.is_dir():
        return [data]
    folder = data / "test" if (data / "test").is_dir() else data
    files = sorted(folder.glob("*_test.csv"))
    if not files:
        raise NotFound(f"no file SUBJECT_test.csv in {folder}")
    return files


def _examples_of(path: Path) -> Path:
    name = f"{path.name.removesuffix('_test.csv')}_dev.csv"
    places = [path.with_name(name), path.parent.parent / "dev" / name]
    for place in places:
        if place.is_file() and place != path:
            return place
    raise NotFound(
        f"the examples for {path.name} are neither {places[0]} nor {places[1]}",
        "name them with --shots-data, or ask without: --shots 0",
    )


def _read(path: Path) -> list[_Item]:
    items = list(_read_json(path) if is_json(path) else _read_csv(path))
    if not items:
        raise damaged(path, "line 1", "a header and no questions")
    return items


def _read_csv(path: Path) -> Iterable[_Item]:
    subject = path.stem.removesuffix("_test").removesuffix("_dev").removesuffix("_val")
    for number, (where, row) in enumerate(read_rows(path)):
        if not number and row[0] == "question":
            continue
        if len(row) != 2 + len(_LETTERS):
            raise damaged(
                path, where, f"{len(row)} columns", "six columns: question, four choices, answer"
            )
        yield _item(path, where, subject, row[0], row[1:-1], row[-1])


def _read_json(path: Path) -> Iterable[_Item]:
    for where, record in read_records(path):
        choices = texts_of(path, where, record, "choices")
        if len(choices) != len(_LETTERS):
            raise damaged(path, where, f"{len(choices)} choices, not four")
        subject = str(record.get("subject", ""))
        text = text_of(path, where, record, "question")
        yield _item(path, where, subject, text, choices, record.get("answer"))


def _item(
    path: Path, where: str, subject: str, question: str, choices: list[str], answer: object
) -> _Item:
    letter = _LETTERS.find(str(answer).strip().upper() or "-")
    gold = letter if letter >= 0 else index_of(path, where, answer, len(_LETTERS))
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True)]
    return _Item(where, subject, "\n".join([question.strip(), *lines, "Answer:"]), gold)


def _head(subject: str, examples: list[_Item], count: int) -> str:
    if len(examples) < count:
        raise Usage(
            f"{len(examples)} examples of {subject or 'no subject'}, and --shots takes {count}",
            "give a file with more, or a smaller --shots",
        )
    about = f" about {subject.replace('_', ' ')}" if subject else ""
    title = f"The following are multiple choice questions (with answers){about}.\n\n"
    return title + "".join(item.solved for item in examples[:count])


def _question(item: _Item, head: str) -> Question:
    context = head + item.text
    where = f"{item.subject}, {item.where}" if item.subject else item.where
    choices = tuple((context, f" {letter}") for letter in _LETTERS)
    return Question(where, choices, frozenset([item.gold]))
