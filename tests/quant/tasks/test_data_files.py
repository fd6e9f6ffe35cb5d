"""Files of questions: what is read of them, and what is said of bad ones."""

import bz2
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.support import RECORDED, Answers, packed_choices
from minitron_core.errors import Damaged, MinitronError, NotFound, Usage
from minitron_quant.tasks.definitions import (
    arc,
    gsm8k,
    hellaswag,
    mmlu,
    multiple_choice,
    winogrande,
)
from minitron_quant.tasks.task import TaskOptions

SIX = "A man sits.\n2\nis one.\nis two.\nis three.\nis four.\n"


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_hellaswag_load_text_also_compressed(tmp_path: Path) -> None:
    (question,) = hellaswag.load(written(tmp_path, "h.txt", SIX))
    assert question.choices[2] == ("A man sits.", " is three.")
    assert question.gold == {2}
    packed = written(tmp_path, "h.txt.bz2", bz2.compress(SIX.encode() * 3))
    assert len(hellaswag.load(packed)) == 3
    with pytest.raises(Damaged, match="unpacked"):
        hellaswag.load(written(tmp_path, "bad.bz2", b"BZh9 no"))


def test_hellaswag_load_cleans_the_datasets_json(tmp_path: Path) -> None:
    record = {
        "activity_label": "Roof removal",
        "ctx_a": "A man  sits [substeps] on a roof.",
        "ctx_b": "he",
        "endings": ["is [title] using wrap.", "goes.", "stays.", "sings."],
        "label": 3,
    }
    (question,) = hellaswag.load(written(tmp_path, "h.jsonl", json.dumps(record) + "\n"))
    assert question.choices[0] == (
        "Roof removal: A man sits on a roof. He",
        " is. using wrap.",
    )
    assert question.gold == {3}
    plain = {**record, "ctx": "A man sits. he", "label": "0"}
    del plain["ctx_b"]
    (question,) = hellaswag.load(written(tmp_path, "p.jsonl", json.dumps(plain)))
    assert question.choices[1] == ("Roof removal: A man sits. he", " goes.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SIX + "One more.\n", "bad.txt, line 7: the file ends inside a question"),
        (SIX + SIX.replace("2", "two"), "bad.txt, line 8: the label is 'two', not a number from 0"),
        (SIX.replace("2", "4"), "bad.txt, line 2: the label is '4', not a number from 0 to 3"),
        ("", "bad.txt is empty"),
        ('{"ctx": 3}', "bad.txt, line 1: no text 'ctx'"),
        ('{"ctx": ', "bad.txt, line 1: not JSON"),
        ('[{"ctx": "a"},\n{]', "bad.txt, line 2: not JSON"),
        (SIX.replace("A man", "{"), "bad.txt, line 1: not JSON"),
        ("[3]", "bad.txt, entry 1: not a JSON object"),
    ],
)
def test_hellaswag_load_refuses_bad_data(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Damaged) as caught:
        hellaswag.load(written(tmp_path, "bad.txt", text))
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 8


def test_winogrande_load_reads_the_last_line(tmp_path: Path) -> None:
    text = '0,"The _ was here, once.",cat,dog,2\n1,A _ sat.,"big, fat cat",dog,1\n'
    questions = winogrande.load(written(tmp_path, "w.csv", text))
    assert questions[0].choices == (
        ("The cat", " was here, once."),
        ("The dog", " was here, once."),
    )
    assert questions[1].choices[0] == ("A big, fat cat", " sat.")
    assert [sorted(q.gold) for q in questions] == [[1], [0]]
    header = "qID,sentence,option1,option2,answer\n"
    assert winogrande.load(written(tmp_path, "x.csv", header + text))[1].choices[0][0] == (
        "A big, fat cat"
    )
    record = {"sentence": "A _ sat.", "option1": "cat", "option2": "dog", "answer": "2"}
    (question,) = winogrande.load(written(tmp_path, "w.jsonl", json.dumps(record)))
    assert question.choices[1] == ("A dog", " sat.") and question.gold == {1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,A _ sat.,cat,dog,1\n1,A _ sat.,cat,dog\n", "bad.csv, line 2: 4 columns"),
        ("0,A cat sat.,cat,dog,1\n", "bad.csv, line 1: the sentence has no gap"),
        ("0,A _ sat.,cat,dog,3\n", "bad.csv, line 1: the label is '3', not a number from 1 to 2"),
        ('0,A _ sat.,a,b,1\n0,"A _ sat.,a,b,3\n\n', "bad.csv, line 2: not CSV"),
        ("n,sentence,option1,option2,answer\n", "bad.csv, line 1: a header and no questions"),
    ],
)
def test_winogrande_load_refuses_bad_data(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Damaged) as caught:
        winogrande.load(written(tmp_path, "bad.csv", text))
    assert str(caught.value).startswith(message)


def test_read_data_missing_file_or_folder(tmp_path: Path) -> None:
    for load in (hellaswag.load, winogrande.load, multiple_choice.load):
        with pytest.raises(NotFound):
            load(tmp_path / "none")
        with pytest.raises(Usage, match="folder"):
            load(tmp_path)


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
one_right = st.lists(words, min_size=2, max_size=5).flatmap(
    lambda some: st.permutations([1] + [0] * (len(some) - 1)).map(
        lambda labels: list(zip(some, labels, strict=True))
    )
)
several = st.lists(st.tuples(words, st.integers(0, 1)), max_size=3)
questions = st.lists(st.tuples(words, one_right, several), min_size=1, max_size=4)


@given(questions)
def test_multiple_choice_round_trip(some: list[tuple[str, Answers, Answers]]) -> None:
    path = RECORDED / "choices.bin"
    loaded = multiple_choice.parse(path, packed_choices(some))
    assert len(loaded) == len(some)
    for question, (text, answers, _) in zip(loaded, some, strict=True):
        assert question.choices == tuple((text, f" {answer}") for answer, _ in answers)
        assert question.gold == {n for n, (_, label) in enumerate(answers) if label == 1}


@given(questions, st.data())
def test_multiple_choice_changed_bytes_are_damaged_or_other_questions(
    some: list[tuple[str, Answers, Answers]], data: st.DataObject
) -> None:
    whole = bytearray(packed_choices(some))
    at = 4 * data.draw(st.integers(0, len(whole) // 4 - 1))
    whole[at : at + 4] = struct.pack("<I", data.draw(st.integers(0, 2**32 - 1)))
    end = data.draw(st.integers(0, len(whole)))
    for damaged in (bytes(whole), packed_choices(some)[:end]):
        try:
            loaded = multiple_choice.parse(RECORDED / "choices.bin", damaged)
        except MinitronError as error:
            assert isinstance(error, Damaged) and "\n" not in str(error)
        else:
            assert all(question.gold for question in loaded)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01", "header: the file ends where 4 bytes"),
        (struct.pack("<I", 0) + b"    ", "header: no questions"),
        (struct.pack("<I", 1 << 30), "header: the file ends where 4294967296 bytes"),
        (struct.pack("<II", 1, 0) + b"    ", "question 1: its offset 0 points outside"),
        (packed_choices([("q", [("a", 0), ("b", 0)], [])]), "question 1: no answer is labelled 1"),
        (
            packed_choices([("q", [("a", 1)], [])]),
            "question 1: an empty question or answer, or fewer",
        ),
        (packed_choices([("q", [("a", 1)] * 101, [])]), "question 1: 101 answers"),
    ],
)
def test_multiple_choice_refuses_bad_data(data: bytes, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, "bad.bin", data)
    with pytest.raises(Damaged) as caught:
        multiple_choice.load(path)
    assert str(caught.value).startswith(f"bad.bin, {message}")


KEYS = ("ctx", "activity_label", "endings", "label", "sentence", "option1", "answer", "question")
MORE_KEYS = ("choices", "answerKey", "instruction", "subject", "text", "stem")
values = st.recursive(
    st.none() | st.integers() | st.floats() | st.sampled_from(["A", "1", "a_b", "#### 5"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS + MORE_KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)
records = st.lists(
    st.dictionaries(st.sampled_from(KEYS + MORE_KEYS), values, max_size=8), max_size=2
)
json_lines = records.map(lambda some: "\n".join(map(json.dumps, some)).encode())


odd_text = st.text(alphabet='a,"\n_12{}[]\r\0', max_size=40).map(str.encode)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=json_lines | odd_text | st.binary())
def test_load_any_data_gives_a_clear_error(data: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, "data", data)
    loads: list[Callable[[Path], object]] = [
        hellaswag.load,
        winogrande.load,
        arc.load,
        multiple_choice.load,
        lambda p: mmlu.load(p, 0, None),
        lambda p: gsm8k.load(TaskOptions(p)),
    ]
    for load in loads:
        try:
            load(path)
        except MinitronError as error:
            assert error.exit_code == 8 and "\n" not in str(error)
