"""MMLU: examinations of 57 subjects, five worked examples before each question.

Formats: the dataset's CSV (question, four choices, answer; with or without a header) in files named
SUBJECT_test.csv with SUBJECT_dev.csv beside them or in ../dev, one file or a folder of them; and
JSON lines with question, choices, answer and subject. Asked as lm-evaluation-harness asks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minitron_core.errors import NotFound
from minitron_quant.tasks.data_files import Place, is_json, read_records, read_rows
from minitron_quant.tasks.question import Question, after_common
from minitron_quant.tasks.subsampling import sample_sorted
from minitron_quant.tasks.task import ChoiceTask, take_shots

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
    questions = []
    for path in _files(data):
        items = _read(path)
        examples = [] if shots == 0 else _read(shots_data or _examples_of(path))
        subjects = dict.fromkeys(item.subject for item in items)
        heads = {subject: _head(subject, examples, shots) for subject in subjects}
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
        raise Place(path, "line 1").error("a header and no questions")
    return items


def _read_csv(path: Path) -> Iterable[_Item]:
    subject = path.stem.removesuffix("_test").removesuffix("_dev").removesuffix("_val")
    for number, row in enumerate(read_rows(path)):
        if not number and row.cells[0] == "question":
            continue
        if len(row.cells) != 2 + len(_LETTERS):
            raise row.error(
                f"{len(row.cells)} columns", "six columns: question, four choices, answer"
            )
        yield _item(row, subject, row.cells[0], row.cells[1:-1], row.cells[-1])


def _read_json(path: Path) -> Iterable[_Item]:
    for record in read_records(path):
        choices = record.texts("choices")
        if len(choices) != len(_LETTERS):
            raise record.error(f"{len(choices)} choices, not four")
        subject = str(record.values.get("subject", ""))
        yield _item(record, subject, record.text("question"), choices, record.values.get("answer"))


def _item(place: Place, subject: str, question: str, choices: list[str], answer: object) -> _Item:
    letter = _LETTERS.find(str(answer).strip().upper() or "-")
    gold = letter if letter >= 0 else place.index(answer, len(_LETTERS))
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True)]
    return _Item(place.where, subject, "\n".join([question.strip(), *lines, "Answer:"]), gold)


def _head(subject: str, examples: list[_Item], shots: int | None) -> str:
    about = f" about {subject.replace('_', ' ')}" if subject else ""
    title = f"The following are multiple choice questions (with answers){about}.\n\n"
    solved = [item.solved for item in examples if item.subject == subject]
    return title + "".join(take_shots(solved, shots, subject or "the examples"))


def _question(item: _Item, head: str) -> Question:
    context = head + item.text
    where = f"{item.subject}, {item.where}" if item.subject else item.where
    choices = tuple((context, f" {letter}") for letter in _LETTERS)
    return Question(where, choices, frozenset([item.gold]))


TASK = ChoiceTask(
    "MMLU: examinations of 57 subjects, after five worked examples.",
    lambda options: load(options.data, options.shots, options.shots_data),
    after_common,
    normalize="none",
    select=sample_sorted,
    examples=True,
)
