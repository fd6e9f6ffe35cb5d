"""The table of levels, and what reads it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minitron_core.errors import Unsupported
from minitron_core.gguf import TYPE
from minitron_quant import levels
from minitron_quant.levels import (
    LEVELS,
    OTHER_LEVELS,
    level_choices,
    level_help,
    level_named,
    level_of_ftype,
    parse_levels,
)
from minitron_quant.quantize.options import ENCODABLE
from minitron_quant.quantize.summary import KERNEL_SPEED, RELATIVE_SPEED

EVERY = LEVELS + OTHER_LEVELS


def test_levels_have_names_and_ids_of_their_own() -> None:
    names = [name for level in EVERY for name in (level.name, *level.aliases)]
    assert len(names) == len(set(names)) == len(level_choices()) - 1
    assert len({level.ftype for level in EVERY}) == len(EVERY)


def test_level_choices_can_all_be_parsed() -> None:
    for choice in level_choices():
        for text in (choice, choice.lower()):
            assert parse_levels([text])
    assert parse_levels(["all"]) == list(LEVELS) and len(LEVELS) == 27


def test_level_help_names_every_level_once() -> None:
    words = level_help().replace(",", "").replace(".", "").split()
    assert [word for word in words if word.isupper() or "_" in word] == [
        level.name for level in EVERY
    ]


def test_level_named_suggests_similar_names() -> None:
    assert level_named("q4_k") is level_named("Q4_K_M")
    with pytest.raises(Unsupported) as caught:
        level_named("Q4_K_X")
    assert "Q4_K_M" in caught.value.hint or "Q4_K_S" in caught.value.hint


def test_level_of_ftype_is_the_inverse_of_the_table() -> None:
    assert [level_of_ftype(level.ftype) for level in EVERY] == [level.name for level in EVERY]
    assert level_of_ftype(None) == level_of_ftype(9999) == ""


@pytest.mark.parametrize("speeds", [RELATIVE_SPEED, KERNEL_SPEED])
def test_speeds_cover_every_encodable_type(speeds: dict[str, float]) -> None:
    assert {TYPE[ggml_type].name for ggml_type in ENCODABLE} == speeds.keys()


def test_levels_with_a_new_row_reach_help_completion_and_parsing() -> None:
    source = Path(levels.__file__).read_text()
    row = 'Level("Q9_X", 999, 9.5, aliases=("Q9",)),'
    code = """
import sys, types
module = sys.modules["minitron_quant.levels"] = types.ModuleType("minitron_quant.levels")
exec(sys.stdin.read(), module.__dict__)
import minitron_quant
minitron_quant.levels = module
from minitron_cli.options.completion import complete_level
from minitron_cli.main import app
assert complete_level("q9") == ["q9_x", "q9"], complete_level("q9")
assert [level.ftype for level in module.parse_levels(["q9"])] == [999]
assert module.level_of_ftype(999) == "Q9_X"
app(["quantize", "--help"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=source.replace("OTHER_LEVELS = (\n", f"OTHER_LEVELS = (\n    {row}\n"),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert "Q9_X" in done.stdout
