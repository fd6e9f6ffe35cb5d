"""GSM8K: word problems; the model writes, and the number it comes to is compared.

Data: the dataset's JSON lines (question, answer with "#### number" at its end), asked as
lm-evaluation-harness asks. Examples, if any, are the first of another such file.
"""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from minitron_core.errors import Usage
from minitron_core.progress import Event, Progress
from minitron_engine.llama.model import Model
from minitron_quant.tasks import subsampling
from minitron_quant.tasks.answers import Answer, Answers
from minitron_quant.tasks.batch_generate import WriteSettings, complete
from minitron_quant.tasks.files import damaged, read_records, text_of
from minitron_quant.tasks.likelihood import ScoreSettings

SHOTS = 5
# an answer has no empty line; a base model goes on with the next problem
STOPS = ("\n\n", "Question:")
_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"


@dataclass(frozen=True)
class Problem:
    """A prompt up to where the answer begins, and the number it should come to."""

    where: str
    prompt: str
    number: str


@dataclass(frozen=True)
class PreparedProblems:
    """Problems ready to be answered, in at most `n_predict` tokens each."""

    problems: list[Problem]
    n_predict: int
    chance: float = 0.0

    def answer(self, model: Model, settings: ScoreSettings, progress: Progress) -> Answers:
        """The model's answers: the number after ####, or else the last one that it wrote."""
        total = len(self.problems)

        def listen(done: int) -> None:
            progress(Event("tasks", done, total, "questions"))

        write = WriteSettings(STOPS, self.n_predict, settings.n_batch, settings.threads)
        prompts = [problem.prompt for problem in self.problems]
        texts, shortened = complete(model, prompts, write, listen)
        answers = []
        for problem, text in zip(self.problems, texts, strict=True):
            number = number_in(text)
            answers.append(Answer(problem.where, number, number == problem.number))
        return Answers(answers, shortened)


def prepare(
    data: Path, limit: int | None, shots: int | None, shots_data: Path | None, n_predict: int
) -> PreparedProblems:
    """Read problems, and put examples before them where a file of examples is given."""
    head = ""
    if shots_data:
        count = SHOTS if shots is None else shots
        solved = [f"{prompt} {answer}\n\n" for _, prompt, answer in _read(shots_data)]
        if len(solved) < count:
            raise Usage(
                f"{shots_data.name} has {len(solved)} examples, and --shots takes {count}",
                "give a file with more, or a smaller --shots",
            )
        head = "".join(solved[:count])
    elif shots:
        raise Usage(
            "the examples of GSM8K come from another file than its problems",
            "name it with --shots-data (the dataset's train.jsonl)",
        )
    problems = [
        Problem(where, head + prompt, number_in(answer)) for where, prompt, answer in _read(data)
    ]
    chosen = [problems[number] for number in subsampling.drawn(len(problems), limit)]
    return PreparedProblems(chosen, n_predict)


def _read(path: Path) -> list[tuple[str, str, str]]:
    items = []
    for where, record in read_records(path):
        answer = text_of(path, where, record, "answer")
        if not re.search(rf"####\s*{_NUMBER}", answer):
            raise damaged(path, where, "the answer has no '#### number' at its end")
        question = text_of(path, where, record, "question")
        items.append((where, f"Question: {question}\nAnswer:", answer))
    return items


def number_in(text: str) -> str:
    """The number after ####, or else the last number, without signs of thousands; or nothing."""
    after = re.search(rf"####\s*({_NUMBER})", text)
    found = [after[1]] if after else re.findall(_NUMBER, text)
    if not found:
        return ""
    try:
        number = Decimal(re.sub(r"[$,]", "", found[-1]))
    except InvalidOperation:
        return ""
    return f"{number.normalize():f}"
