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
from minitron_convert.hub.published_names import models_called, models_in
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


@pytest.mark.parametrize(
    ("typed", "levels"),
    [
        ("", "m:q4_k_m m:UD-Q4_K_XL m:Q5_K_M m:i1-IQ2_M m:FP16 m:chat"),
        ("m:", "m:q4_k_m m:UD-Q4_K_XL m:Q5_K_M m:i1-IQ2_M m:FP16 m:chat"),
        ("m:Q4", "m:Q4_K_M m:Q4_K_XL"),
        ("m:q5", "m:q5_k_m"),
        ("m:IQ", "m:IQ2_M"),
        ("m:F", "m:FP16"),
        ("m:F1", "m:F16"),
        ("m:Q5_K_M/", "m:Q5_K_M/m"),
        ("m:m-", "m:m-UD-Q4_K_XL m:m-FP16 m:m-chat"),
    ],
)
def test_complete_model_knows_every_spelling_of_a_level(
    typed: str, levels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "models--me--m" / "snapshots" / "0123"
    files = "m_q4_k_m m-UD-Q4_K_XL Q5_K_M/m-00001-of-00002 Q5_K_M/m-00002-of-00002 m.i1-IQ2_M"
    for name in (*files.split(), "m-FP16", "m-chat", "mmproj-F16"):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / f"{name}.gguf").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path / "models--me--m")
    found = [name for name in complete_model(f"me/{typed}") if name.startswith("me/")]
    assert sorted(found) == sorted(f"me/{name}" for name in levels.split())
    models = models_in(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf"))
    assert all(len(models_called(name.partition(":")[2], models)) == 1 for name in found)


def test_complete_outtype_knows_types_and_levels() -> None:
    assert complete_outtype("") == list(OUTTYPES)
    assert complete_outtype("q8") == ["q8_0"]
    assert complete_outtype("Q4_K") == ["Q4_K_S", "Q4_K_M", "Q4_K"]
