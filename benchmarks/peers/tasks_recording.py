"""Make small files of questions from the held-out text, and record llama-perplexity's scores."""

import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_tools import MODELS, THREADS, Workplace, about, sha256_of, source_of, write_json

HELLASWAG, WINOGRANDE, CHOICES = "hellaswag.txt", "winogrande.csv", "choices.bin"
QUESTIONS = 40
RUNS: dict[str, tuple[str | int, ...]] = {
    "hellaswag": ("--hellaswag", "-f", HELLASWAG),
    "hellaswag-24": ("--hellaswag", "-f", HELLASWAG, "--hellaswag-tasks", 24),
    "winogrande": ("--winogrande", "-f", WINOGRANDE),
    "winogrande-24": ("--winogrande", "-f", WINOGRANDE, "--winogrande-tasks", 24),
    "multiple-choice": ("--multiple-choice", "-bf", CHOICES, "-np", 8),
    "multiple-choice-24": (
        *("--multiple-choice", "-bf", CHOICES, "-np", 8),
        *("--multiple-choice-tasks", 24),
    ),
}  # fmt: skip


def sentences(text: str) -> list[list[str]]:
    """Sentences of the text as words, long enough to be cut in two."""
    found = re.findall(r"(?<= )[A-Z][^.!?\n\"_]{60,160}\.", text)
    return [words for words in map(str.split, found) if len(words) >= 12]


def halves(source: list[list[str]]) -> Iterator[tuple[str, str]]:
    """Beginning and end of sentences."""
    for words in source:
        yield " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def hellaswag(chance: random.Random, source: list[list[str]]) -> str:
    """Six lines a question: a beginning, the number of its own end, four ends."""
    parts = list(halves(source))
    lines = []
    for number, (context, ending) in enumerate(parts):
        others = [end for at, (_, end) in enumerate(parts) if at != number]
        endings = [ending, *chance.sample(others, 3)]
        chance.shuffle(endings)
        lines += [context, str(endings.index(ending)), *endings]
    return "".join(f"{line}\n" for line in lines)


def winogrande(chance: random.Random, source: list[list[str]]) -> str:
    """A word blanked early, or so late that little follows; the sentence quoted, as it may be."""
    lines = []
    for number, words in enumerate(source):
        at = len(words) - 2 if number % 4 == 3 else chance.randrange(2, 5)
        right = words[at].strip(",;:-'") or "it"
        rest = words[at].partition(right)[2]
        others = {word.strip(",;:-'") for words in source for word in words[2:-2]} - {"", right}
        sentence = " ".join([*words[:at], f"_{rest}", *words[at + 1 :]])
        quoted = f'"{sentence}"' if "," in sentence else sentence
        options = [right, chance.choice(sorted(others))]
        gold = chance.randrange(2)
        lines.append(f"{number},{quoted},{options[gold]},{options[1 - gold]},{gold + 1}\n")
    return "".join(lines)


def choices(chance: random.Random, source: list[list[str]]) -> bytes:
    """llama.cpp's binary format: two to five ends of a sentence, one of them its own."""

    def text(value: str) -> bytes:
        return struct.pack("<I", len(value.encode())) + value.encode()

    def answers(options: list[str], right: str) -> bytes:
        labels = [int(option == right) for option in options]
        packed = b"".join(map(text, options)) + struct.pack(f"<{len(labels)}i", *labels)
        return struct.pack("<I", len(options)) + packed

    parts = list(halves(source))
    questions = []
    for number, (context, ending) in enumerate(parts):
        others = [end for at, (_, end) in enumerate(parts) if at != number]
        options = [ending, *chance.sample(others, chance.randrange(1, 5))]
        chance.shuffle(options)
        questions.append(text(context) + answers(options, ending) + answers([], ""))
    start = 4 * (len(questions) + 1)
    offsets = [start + sum(map(len, questions[:n])) for n in range(len(questions))]
    return struct.pack(f"<{len(questions) + 1}I", len(questions), *offsets) + b"".join(questions)


def make_questions(work: Workplace, out: Path) -> None:
    """The files of questions, in `out` and the workplace."""
    chance = random.Random(5)
    source = sentences((work.folder / "held-out.txt").read_text(errors="replace"))
    sample = chance.sample(source, QUESTIONS)
    (out / HELLASWAG).write_text(hellaswag(chance, sample))
    (out / WINOGRANDE).write_text(winogrande(chance, sample))
    (out / CHOICES).write_bytes(choices(chance, sample))
    for name in (HELLASWAG, WINOGRANDE, CHOICES):
        work.link(out / name)


def record_tasks(work: Workplace, out: Path) -> None:
    """Running scores of every task on the models, from the line of each question."""
    document: dict[str, Any] = work.header() | {
        "data_sha256": {n: sha256_of(work.folder / n) for n in (HELLASWAG, WINOGRANDE, CHOICES)},
        "models": {},
    }
    for model in MODELS:
        runs = {name: scores_of(work, model, options) for name, options in RUNS.items()}
        document["models"][model] = about(work, model) | {"runs": runs}
    write_json(out / "tasks.json", document)


def scores_of(work: Workplace, model: str, options: tuple[str | int, ...]) -> dict[str, Any]:
    """The numbers of each question's line, and the score with its interval or error."""
    loaded = QUESTIONS - 1 if options[0] == "--winogrande" else QUESTIONS
    count = min(loaded, int(options[-1])) if str(options[-2]).endswith("-tasks") else loaded
    line = rf"^{count}\t+.*$" if options[0] != "--multiple-choice" else r"^Random chance|^24\t"
    output = work.run(
        "llama-perplexity", "-m", source_of(model), *options, "-t", THREADS, last=rf"(?m){line}"
    )
    rows = [
        [float(number) for number in re.findall(r"-?\d+\.?\d*", found)]
        for found in re.findall(r"^\d+\t.*$", output.stdout.decode(), re.MULTILINE)
    ]
    if len(rows) != count:
        raise RuntimeError(f"{len(rows)} lines of {count} questions: {output.command}")
    return {"command": output.command, "rows": rows}
