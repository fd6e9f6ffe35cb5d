"""ARC, MMLU, GSM8K: how they are asked, read and answered; and the real files where they are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from helpers.support import ROOT
from minitron_core.errors import Damaged, NotFound, Usage
from minitron_core.progress import ignore
from minitron_engine.generation.generate import generate
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.steps import GenerationSettings, collect
from minitron_engine.llama.context import open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.tasks.answers import answer_problems
from minitron_quant.tasks.batch_generate import GreedySettings, generate_batch
from minitron_quant.tasks.definitions import arc, gsm8k, mmlu
from minitron_quant.tasks.likelihood import ScoreSettings
from minitron_quant.tasks.registry import task_named
from minitron_quant.tasks.task import Problem, TaskOptions

# the data sets themselves are not part of the repository
EVAL = Path(os.environ.get("MINITRON_EVAL_DATA", ROOT.parent / "shared" / "eval"))


def written(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


AI2 = {
    "question": {
        "stem": "What is hot?",
        "choices": [{"text": "ice", "label": "1"}, {"text": "fire", "label": "2"}],
    },
    "answerKey": "2",
}
HUB = {
    "question": "What is hot?",
    "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
    "answerKey": "B",
}
INSTRUCTION = {
    "instruction": "Please choose the correct answer to the question: What is hot?\n\n"
    "Answer1: ice Answer2: fire\n\nAnswer format: answer1/answer2",
    "answer": "answer2",
}


@pytest.mark.parametrize("record", [AI2, HUB, INSTRUCTION])
def test_arc_load_three_formats(record: object, tmp_path: Path) -> None:
    (question,) = arc.load(written(tmp_path / "arc.jsonl", record))
    context = "Question: What is hot?\nAnswer:"
    assert question.choices == ((context, " ice"), (context, " fire"))
    assert question.gold == {1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerKey": "C"}, "line 2: the answer is 'C', not one of A, B"),
        ({"choices": {"text": ["ice"], "label": ["A"]}}, "line 2: 'text' has 1 texts"),
        ({"choices": [1]}, "line 2: no object 'choices'"),
        ({"question": None}, "line 2: no text 'question'"),
        ({"instruction": "Choose!"}, "line 2: no choices 'Answer1"),
    ],
)
def test_arc_load_refuses_bad_data(change: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(Damaged) as caught:
        arc.load(written(tmp_path / "arc.jsonl", HUB, HUB | change))
    assert str(caught.value).startswith(f"arc.jsonl, {message}")


def mmlu_folder(folder: Path, header: str, answers: str) -> Path:
    for kind in ("test", "dev"):
        (folder / kind).mkdir(parents=True)
        rows = [f'"{kind} {n}, what?",a{n},b,c,d,{answer}\n' for n, answer in enumerate(answers)]
        (folder / kind / f"high_school_art_{kind}.csv").write_text(header + "".join(rows))
    return folder


@pytest.mark.parametrize(
    ("header", "answers"),
    [("", "DABCAB"), ("question,choice0,choice1,choice2,choice3,answer\n", "301201")],
)
def test_mmlu_load_puts_examples_first(header: str, answers: str, tmp_path: Path) -> None:
    folder = mmlu_folder(tmp_path / "mmlu", header, answers)
    for data in (folder, folder / "test", folder / "test" / "high_school_art_test.csv"):
        questions = mmlu.load(data, 2, None)
        assert [sorted(question.gold) for question in questions] == [[3], [0], [1], [2], [0], [1]]
        assert questions[1].choices[3] == (
            "The following are multiple choice questions (with answers) about high school art.\n\n"
            "dev 0, what?\nA. a0\nB. b\nC. c\nD. d\nAnswer: D\n\n"
            "dev 1, what?\nA. a1\nB. b\nC. c\nD. d\nAnswer: A\n\n"
            "test 1, what?\nA. a1\nB. b\nC. c\nD. d\nAnswer:",
            " D",
        )
    assert mmlu.load(folder, None, None)[0].choices[0][0].count("Answer:") == 6
    assert mmlu.load(folder, 0, None)[0].choices[0][0].count("Answer:") == 1


def test_mmlu_load_json_finds_examples_of_the_subject(tmp_path: Path) -> None:
    def record(subject: str, text: str, answer: int) -> dict[str, object]:
        return {
            "question": text, "subject": subject, "choices": ["1", "2", "3", "4"], "answer": answer
        }  # fmt: skip

    test = written(tmp_path / "t.jsonl", record("art", "who?", 1), record("law", "why?", 2))
    dev = written(tmp_path / "d.jsonl", record("law", "lawful?", 0), record("art", "nice?", 3))
    art, law = mmlu.load(test, 1, dev)
    assert "about art.\n\nnice?" in art.choices[0][0] and "lawful?" in law.choices[0][0]
    with pytest.raises(Usage, match="art has 1 examples, and --shots takes 5"):
        mmlu.load(test, None, dev)


def test_mmlu_load_refuses_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "art_test.csv"
    path.write_text("what?,a,b,c,d,E\n")
    with pytest.raises(Damaged, match=r"line 1: the label is 'E', not a number from 0 to 3"):
        mmlu.load(path, 0, None)
    path.write_text("what?,a,b,c,d,A\n")
    with pytest.raises(NotFound, match=r"art_dev\.csv"):
        mmlu.load(path, 5, None)
    path.write_text("what?,a,b,c,d,A\nwhat?,a,b,c,A\n")
    with pytest.raises(Damaged, match="line 2: 5 columns"):
        mmlu.load(path, 0, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match=r"no file SUBJECT_test\.csv"):
        mmlu.load(tmp_path / "empty", 0, None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 * 2 = 12\n#### 1,012 and 3", "1012"),
        ("She pays $18.50.", "18.5"),
        ("so it is -3 or 4.", "4"),
        ("#### -7.0", "-7"),
        ("#### none, but 100", "100"),
        ("nothing", ""),
    ],
)
def test_gsm8k_number_in(text: str, number: str) -> None:
    assert gsm8k.number_in(text) == number


def test_gsm8k_load_puts_examples_first(tmp_path: Path) -> None:
    records = [{"question": f"{n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(4)]
    data = written(tmp_path / "test.jsonl", *records)
    options = TaskOptions(data, limit=2, shots=1, shots_data=data)
    assert [problem.prompt for problem in gsm8k.TASK.prepare(options).questions] == [
        f"Question: 0?\nAnswer: It is 0.\n#### 0\n\nQuestion: {n}?\nAnswer:" for n in (1, 2)
    ]
    assert gsm8k.load(TaskOptions(data))[3].result == "3"
    with pytest.raises(Usage, match="another file"):
        gsm8k.load(TaskOptions(data, shots=5))
    with pytest.raises(Usage, match="has 4 examples, and --shots takes 5"):
        gsm8k.load(TaskOptions(data, shots_data=data))
    bad = written(tmp_path / "bad.jsonl", {"question": "?", "answer": "12"})
    with pytest.raises(Damaged, match=r"bad\.jsonl, line 1: the answer has no '#### number'"):
        gsm8k.load(TaskOptions(bad))


def test_prepare_refuses_options_of_other_tasks() -> None:
    for task, options in (
        ("arc", TaskOptions(Path("x"), shots=3)),
        ("gsm8k", TaskOptions(Path("x"), normalize="none")),
    ):
        with pytest.raises(Usage):
            task_named(task).prepare(options)


def test_generate_batch_equals_single_generation(nano_llama: Path) -> None:
    words = ("sea", "road", "hill", "of", "it", "and")
    prompts = [f"The old house stood by the {word}" for word in words]
    prompts += [prompts[0], "She had never", ""]
    with open_model(ModelSettings(nano_llama)) as model:
        done: list[int] = []
        texts, shortened = generate_batch(model, prompts, GreedySettings((), 8, 64), done.append)
        assert done == list(range(1, len(prompts) + 1)) and not shortened
        assert texts[0] == texts[6]
        with open_context(model, ContextSettings(256, 256)) as context:
            for prompt, text in list(zip(prompts, texts, strict=True))[:-1]:
                context.clear()
                tokens = model.tokenize(prompt, add_special=True, parse_special=False)
                settings = GenerationSettings(SamplingSettings(0, temperature=0), n_predict=8)
                assert collect(generate(context, tokens, settings)).text == text
        stop = texts[1][6:8]
        ended, _ = generate_batch(model, prompts[1:2], GreedySettings((stop,), 8))
        assert ended == [texts[1][: texts[1].index(stop)]]
        assert generate_batch(model, [], GreedySettings((), 8)) == ([], 0)


def test_answer_problems_by_number(nano_llama: Path) -> None:
    with open_model(ModelSettings(nano_llama)) as model:
        prompt = "Question: 1?\nAnswer:"
        (text,), _ = generate_batch(model, [prompt], GreedySettings(gsm8k.TASK.stop, 12))
        problems = [
            Problem("line 1", prompt, gsm8k.number_in(text)),
            Problem("line 1", prompt, "-12345"),
        ]
        answers = answer_problems(problems, gsm8k.TASK, 12, model, ScoreSettings(), ignore)
    assert [answer.right for answer in answers.answers] == [True, False]


REAL = {
    "hellaswag": ("hellaswag_val_full.txt.bz2", 10042),
    "winogrande": ("winogrande-eval.derived.csv", 1267),
    "arc": ("arc/ARC-Easy.test.json", 2376),
    "mmlu": ("mmlu", 14042),
    "gsm8k": ("gsm8k/test.jsonl", 1319),
}


@pytest.mark.parametrize("task", REAL)
def test_prepare_and_answer_real_files(task: str, nano_nemotron: Path) -> None:
    name, _ = REAL[task]
    if not (EVAL / name).exists():
        pytest.skip("no data sets; MINITRON_EVAL_DATA names their folder")
    prepared = task_named(task).prepare(TaskOptions(EVAL / name, limit=6, n_predict=8))
    with open_model(ModelSettings(nano_nemotron)) as model:
        answers = prepared.answer(model, ScoreSettings(), ignore)
    assert len(answers.answers) == 6
    assert all(np.isfinite(answer.scores).all() for answer in answers.answers)


def test_prepare_reads_all_real_questions() -> None:
    if not EVAL.is_dir():
        pytest.skip("no data sets; MINITRON_EVAL_DATA names their folder")
    assert len(mmlu.load(EVAL / "mmlu", None, None)) == REAL["mmlu"][1]
    for task in ("hellaswag", "winogrande", "arc", "gsm8k"):
        name, count = REAL[task]
        prepared = task_named(task).prepare(TaskOptions(EVAL / name))
        assert len(prepared.questions) == count
