"""GSM8K: word problems; the model writes, and the number at the end is compared.

Data: the dataset's JSON lines (question, answer with "#### number" at its end), asked as
lm-evaluation-harness asks. Examples, if any, are the first of another such file.
"""

import re
from decimal import Decimal, InvalidOperation
from pathlib import Path

from minitron_core.errors import Usage
from minitron_quant.tasks.data_files import read_records
from minitron_quant.tasks.task import GenerationTask, Problem, TaskOptions, take_shots

_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"


def load(options: TaskOptions) -> list[Problem]:
    """The problems of a file, each behind examples where a file of examples is given."""
    head = ""
    if options.shots_data:
        solved = [f"{prompt} {answer}\n\n" for _, prompt, answer in _read(options.shots_data)]
        head = "".join(take_shots(solved, options.shots, options.shots_data.name))
    elif options.shots:
        raise Usage(
            "the examples of GSM8K come from another file than its problems",
            "name it with --shots-data (the dataset's train.jsonl)",
        )
    return [
        Problem(where, head + prompt, number_in(answer))
        for where, prompt, answer in _read(options.data)
    ]


def _read(path: Path) -> list[tuple[str, str, str]]:
    items = []
    for record in read_records(path):
        answer = record.text("answer")
        if not re.search(rf"####\s*{_NUMBER}", answer):
            raise record.error("the answer has no '#### number' at its end")
        items.append((record.where, f"Question: {record.text('question')}\nAnswer:", answer))
    return items


def number_in(text: str) -> str:
    """The number after ####, else the last one, without thousands separators; or an empty text."""
    after = re.search(rf"####\s*({_NUMBER})", text)
    found = [after[1]] if after else re.findall(_NUMBER, text)
    if not found:
        return ""
    try:
        number = Decimal(re.sub(r"[$,]", "", found[-1]))
    except InvalidOperation:
        return ""
    return f"{number.normalize():f}"


TASK = GenerationTask(
    "GSM8K: word problems; the last number that the model writes counts.",
    load,
    # an answer has no empty line; a base model continues with the next problem
    stop=("\n\n", "Question:"),
    extract=number_in,
)
