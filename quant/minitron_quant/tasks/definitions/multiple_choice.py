"""llama.cpp's binary file of multiple-choice questions (TruthfulQA, ARC, MMLU and others in it).

Layout, little-endian (multiple_choice_score of tools/perplexity, llama.cpp 0c1e57098): u32 count;
u32 offset of each question from the beginning; a question: text, then two lists of answers, of
which the first is used: u32 n ≤ 100, n texts, n × i32 label (1: right). A text: u32 length, bytes.
"""

import struct
from pathlib import Path

from minitron_core.errors import Damaged
from minitron_quant.tasks.data_files import Place, read_data
from minitron_quant.tasks.question import Question, after_common
from minitron_quant.tasks.task import ChoiceTask

_MOST_ANSWERS = 100


class _Reader:
    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self.at = path, data, 0
        self.question = 0

    def error(self, what: str) -> Damaged:
        where = f"question {self.question}" if self.question else "header"
        return Place(self._path, where).error(f"{what} (byte {self.at})")

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise self.error(f"the file ends where {size} bytes should follow")
        self.at += size
        return self._data[self.at - size : self.at]

    def numbers(self, count: int, kind: str = "I") -> tuple[int, ...]:
        return struct.unpack(f"<{count}{kind}", self.take(4 * count))

    def text(self) -> str:
        (size,) = self.numbers(1)
        return self.take(size).decode("utf-8", errors="surrogateescape")

    def answers(self) -> list[tuple[str, int]]:
        (count,) = self.numbers(1)
        if count > _MOST_ANSWERS:
            raise self.error(f"{count} answers; {_MOST_ANSWERS} are the most")
        texts = [self.text() for _ in range(count)]
        return list(zip(texts, self.numbers(count, "i"), strict=True))


def load(path: Path) -> list[Question]:
    """The questions of a file, in the order of its table of offsets."""
    return parse(path, read_data(path))


def parse(path: Path, data: bytes) -> list[Question]:
    """The questions in the bytes of a file; its path is for errors."""
    reader = _Reader(path, data)
    (count,) = reader.numbers(1)
    if not count:
        raise reader.error("no questions")
    offsets = reader.numbers(count)
    questions = []
    for number, offset in enumerate(offsets, 1):
        reader.question = number
        if not reader.at <= offset < len(data):
            raise reader.error(f"its offset {offset} points outside or back into what was read")
        reader.at = offset
        questions.append(_question(reader))
    return questions


def _question(reader: _Reader) -> Question:
    text = reader.text()
    answers = reader.answers()
    reader.answers()
    if not text or len(answers) < 2 or not all(answer for answer, _ in answers):
        raise reader.error("an empty question or answer, or fewer than two answers")
    gold = frozenset(number for number, (_, label) in enumerate(answers) if label == 1)
    if not gold:
        raise reader.error("no answer is labelled 1 (right)")
    choices = tuple((text, f" {answer}") for answer, _ in answers)
    return Question(f"question {reader.question}", choices, gold)


TASK = ChoiceTask(
    "llama.cpp's binary files of multiple-choice questions.",
    lambda options: load(options.data),
    after_common,
    normalize="tokens",
)
