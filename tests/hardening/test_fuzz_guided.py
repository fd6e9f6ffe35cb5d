"""Inputs found by coverage, where atheris is installed: pip install atheris, then make harden."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.harden
RUNS = 200_000
TESTS = Path(__file__).parents[1]
# those whose format is binary: coverage finds what their fields mean
TARGETS = ("GGUF", "safetensors", "torch .bin", "tokenizer.model", "imatrix .dat", "job file")


@pytest.mark.parametrize("target", (*TARGETS, "multiple-choice binary"))
def test_inputs_found_by_coverage(target: str) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install atheris")
    words = (sys.executable, "-m", "hardening.fuzz.guided", target, str(RUNS))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    ran = subprocess.run(words, capture_output=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")[-3000:]
