"""What the shell offers on Tab, asked as bash asks it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minitron_cli.options.completion import (
    complete_job,
    complete_level,
    complete_model,
    complete_outtype,
)
from minitron_convert.outtypes import OUTTYPES


def offered(line: str, folder: Path) -> list[str]:
    """What bash would show for the last word of a line."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_MINITRON_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "HF_HOME": str(folder / "hub"),
    }
    code = "import sys; sys.argv[0] = 'minitron'; from minitron_cli.main import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ran.stdout.split()


def test_completion_offers_levels_models_and_jobs(tmp_path: Path) -> None:
    (tmp_path / "model-F16.gguf").touch()
    (tmp_path / "model.txt").touch()
    (tmp_path / "job.toml").touch()
    assert offered("minitron quantize model-F16.gguf IQ2_X", tmp_path) == ["IQ2_XXS", "IQ2_XS"]
    assert offered("minitron quantize mod", tmp_path) == ["model-F16.gguf"]
    assert offered("minitron run j", tmp_path) == ["job.toml"]
    assert "imatrix-merge" in offered("minitron imat", tmp_path)


def test_complete_level_takes_any_case() -> None:
    assert complete_level("q4_k_") == ["q4_k_s", "q4_k_m"]
    assert complete_level("Q4_K_") == ["Q4_K_S", "Q4_K_M"]
    assert complete_level("al") == ["all"]
    assert complete_level("zz") == []


def test_complete_model_keeps_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.gguf").touch()
    (tmp_path / ".hidden").mkdir()
    monkeypatch.chdir(tmp_path)
    assert complete_model("") == ["out/"]
    assert complete_model("./o") == ["./out/"]
    assert complete_model("out/") == ["out/a.gguf"]
    assert complete_model(f"{tmp_path}/out/a") == [f"{tmp_path}/out/a.gguf"]
    assert complete_model("none/x") == [] and complete_job("out/") == []


def test_complete_model_lists_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "models--me--nano-GGUF" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "nano-Q4_K_M.gguf").touch()
    (snapshot / "nano-IQ2_XS.gguf").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert complete_model("me/") == ["me/nano-GGUF:IQ2_XS", "me/nano-GGUF:Q4_K_M"]
    assert complete_model("you/") == []


def test_complete_outtype_knows_types_and_levels() -> None:
    assert complete_outtype("") == list(OUTTYPES)
    assert complete_outtype("q8") == ["q8_0"]
    assert complete_outtype("Q4_K") == ["Q4_K_S", "Q4_K_M", "Q4_K"]
