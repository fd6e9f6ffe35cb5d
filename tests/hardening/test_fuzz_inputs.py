"""Damaged and hostile inputs: every parser takes them or says in one line why not.

The quick part tries a few of each kind; `make harden` tries 200,000, and 5,000 of each command. A
failure names the indices that show it again (see hardening/fuzz/runner.py).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hardening.fuzz.targets import COMMANDS, PARSERS

QUICK, LONG = 60, 200_000
COMMANDS_QUICK, COMMANDS_LONG = 2, 5_000
TESTS = Path(__file__).parents[1]


def outcomes(count: int, *targets: str) -> Iterator[dict[str, Any]]:
    """Try inputs in a process of its own; one outcome per target."""
    words = (sys.executable, "-m", "hardening.fuzz.runner", "--count", str(count), *targets)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    ran = subprocess.run(words, capture_output=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    yield from map(json.loads, ran.stdout.splitlines())


@pytest.fixture(scope="module")
def quick() -> dict[str, dict[str, Any]]:
    """What became of a few inputs of every target."""
    found = [*outcomes(QUICK, *PARSERS), *outcomes(COMMANDS_QUICK, *COMMANDS)]
    return {outcome["target"]: outcome for outcome in found}


@pytest.mark.parametrize("target", PARSERS)
def test_a_few_inputs(target: str, quick: dict[str, dict[str, Any]]) -> None:
    outcome = quick[target]
    assert outcome["findings"] == {}
    # damage that all is refused, or none, would show little
    assert outcome["accepted"] > 0 and outcome["refused"] > 0, outcome
    assert outcome["accepted"] + outcome["refused"] == QUICK


@pytest.mark.parametrize("target", COMMANDS)
def test_a_few_commands(target: str, quick: dict[str, dict[str, Any]]) -> None:
    assert quick[target]["findings"] == {}


@pytest.mark.harden
@pytest.mark.parametrize("target", COMMANDS)
def test_many_commands(target: str) -> None:
    (outcome,) = outcomes(COMMANDS_LONG, target)
    assert outcome["findings"] == {}


@pytest.mark.harden
@pytest.mark.parametrize("target", PARSERS)
def test_many_inputs(target: str) -> None:
    (outcome,) = outcomes(LONG, target)
    assert outcome["findings"] == {}
    assert outcome["accepted"] + outcome["refused"] == LONG
