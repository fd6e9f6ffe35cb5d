"""minitron tasks, as a shell sees it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helpers.support import RECORDED
from minitron_cli import main as command_line
from minitron_cli.main import app

HELLASWAG = RECORDED / "hellaswag.txt"


def run(*words: object) -> str:
    result = CliRunner().invoke(app, ["tasks", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_tasks_shows_a_table_and_a_document(nano_llama: Path, tmp_path: Path) -> None:
    common = (nano_llama, "--task", "hellaswag", "--data", HELLASWAG, "--limit", 24)
    assert run(*common, "--format", "md") == (
        "| Model | Size (MB) | Questions | Score (%) | 95 % from | to | Chance (%) |\n"
        "| :-- | --: | --: | --: | --: | --: | --: |\n"
        "| nano-llama-F16.gguf | 15.39 | 24 | 45.83 | 27.89 | 64.93 | 25.00 |\n"
    )
    answers = tmp_path / "answers.jsonl"
    words = ("--json", "--reference", nano_llama, "--answers", answers)
    document = json.loads(run(*common, *words))
    assert document["task"] == "hellaswag" and document["data"] == str(HELLASWAG)
    (row,) = document["rows"]
    assert row["correct"] == 11 and row["questions"] == 24 and row["flips"] is None
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(lines) == 24 and sum(line["right"] for line in lines) == 11
    assert len({line["where"] for line in lines}) == 24 and len(lines[0]["scores"]) == 4


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("one\ntwo\n", 8, "line 2: the file ends inside a question"),
        (None, 3, "does not exist"),
    ],
)
def test_tasks_refuses_bad_data(
    text: str | None,
    code: int,
    message: str,
    nano_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data.txt"
    if text is not None:
        data.write_text(text)
    words = ["tasks", str(nano_llama), "--task", "hellaswag", "--data", str(data)]
    monkeypatch.setattr("sys.argv", ["minitron", *words])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    assert caught.value.code == code
    assert message in capsys.readouterr().err
