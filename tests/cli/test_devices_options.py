"""The options for devices, in every command that runs a model."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES, fails

TEXT = ("-f", EXAMPLES / "calibration.txt")
COMMANDS = {
    "imatrix": TEXT,
    "sensitivity": TEXT,
    "ppl": (*TEXT, "--ctx", 64, "--chunks", 2),
    "bench": ("-p", 8, "-n", 0, "-r", 1),
    "generate": ("The", "-n", 1),
    "chat": ("--raw",),
    "tasks": ("--task", "hellaswag", "--data", "question"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_refuses_a_device_that_is_not_there(
    name: str,
    minitron: Any,
    short_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("question").write_text("The house\n0\nstood\nfell\nran\nsang\n")
    output = ("-o", tmp_path / "made") if name in ("imatrix", "sensitivity") else ()
    ran = minitron(name, short_llama, *COMMANDS[name], *output, "--device", "GPU9")
    fails(ran, 2, "there is no device GPU9")


def test_ppl_on_a_device_of_choice_has_rows_of_its_own(
    minitron: Any, short_llama: Path, tmp_path: Path
) -> None:
    words = ("ppl", short_llama, *COMMANDS["ppl"], "--resume", tmp_path / "rows", "--json")
    first = minitron(*words, "--device", "none").document
    second = minitron(*words).document
    assert second["rows"][0]["ppl"] == pytest.approx(first["rows"][0]["ppl"], rel=1e-3)
    with closing(sqlite3.connect(tmp_path / "rows")) as rows:
        (count,) = rows.execute("SELECT COUNT(DISTINCT key) FROM scored").fetchone()
    assert count == 2, "scores of one device are not taken for those of another"
