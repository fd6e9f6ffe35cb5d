"""kill -9 at random moments: what is there is whole, and the same job ends with the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.support import ROOT
from helpers.tiny_gguf import write_tiny

ROUNDS = Path(__file__).parent / "kill_rounds.py"


def kill(folder: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    source = write_tiny(folder / "tiny-F16.gguf")
    words = (sys.executable, ROUNDS, source, folder / "out", str(rounds), str(seed))
    paths = os.pathsep.join((str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    env = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=env)
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


def models(files: dict[str, str]) -> dict[str, str]:
    return {name: sha256 for name, sha256 in files.items() if name.endswith(".gguf")}


def check(results: list[dict[str, Any]]) -> None:
    whole, *killed = results
    expected = models(whole["resumed"])
    assert len(expected) == 3
    for result in killed:
        # a file under its own name is complete, however early the job died
        assert models(result["killed"]).items() <= expected.items(), result["line"]
        assert models(result["resumed"]) == expected, result["line"]
        assert result["resumed"].keys() == whole["resumed"].keys(), result["line"]


def test_run_continues_after_kill_9_at_20_random_moments(tmp_path: Path) -> None:
    results = kill(tmp_path, 20, seed=1)
    check(results)
    ends = [{name.rpartition(".")[2] for name in result["killed"]} for result in results]
    # the moments are of all kinds: before the first byte, while encoding, while finishing
    assert {"lock"} in ends and any({"partial", "journal"} <= end for end in ends)
    assert any({"gguf", "journal"} <= end for end in ends)
