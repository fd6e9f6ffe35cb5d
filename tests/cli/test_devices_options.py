"""The options for devices, in every command that runs a model."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES, fails
from minitron_core.errors import Damaged
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model

TEXT = ("-f", EXAMPLES / "calibration.txt")
COMMANDS = {
    "imatrix": TEXT,
    "sensitivity": TEXT,
    "ppl": (*TEXT, "--ctx", 64, "--chunks", 2),
    "bench": ("-p", 8, "-n", 0, "-r", 1),
    "generate": ("The", "-n", 1),
    "chat": ("--raw",),
    "quantize": ("Q4_0", *TEXT, "-d", "."),
    "quantize --gptq independent": ("Q4_0", "--text", TEXT[1], "-d", "."),
    "quantize --gptq sequential": ("Q4_0", "--text", TEXT[1], "-d", "."),
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
    command, *options = name.split()
    ran = minitron(command, short_llama, *options, *COMMANDS[name], *output, "--device", "GPU9")
    fails(ran, 2, "there is no device GPU9")


def test_quantize_refuses_a_device_where_no_model_runs(
    minitron: Any, short_llama: Path, tmp_path: Path
) -> None:
    ran = minitron("quantize", short_llama, "Q4_0", "-d", tmp_path, "--device", "none")
    fails(ran, 2, "no model runs here", "-f TEXT")


@pytest.mark.parametrize("options", [(), ("--gptq", "independent"), ("--gptq", "sequential")])
def test_quantize_calibrates_with_the_layers_on_gpus_that_it_was_given(
    options: tuple[str, ...],
    minitron: Any,
    short_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[ModelSettings] = []

    def loading(settings: ModelSettings, *_others: Any) -> Any:
        loaded.append(settings)
        raise Damaged("enough")

    monkeypatch.setenv("MINITRON_GPU_LAYERS", "3")
    monkeypatch.setattr("minitron_engine.llama.devices.gpus", lambda: [None])
    for module in ("minitron.loading", "minitron_quant.gptq.sequential_levels"):
        monkeypatch.setattr(f"{module}.open_model", loading)

    @contextmanager
    def vocabulary(settings: ModelSettings) -> Iterator[Model]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("minitron_engine.llama.devices.gpus", list)
            with open_model(ModelSettings(settings.path, 0, vocab_only=True)) as model:
                yield model

    monkeypatch.setattr("minitron_cli.quantize_gptq.open_model", vocabulary)
    given = ("-f", EXAMPLES / "calibration.txt", "-d", tmp_path, "--split-mode", "none")
    ran = minitron("quantize", short_llama, "Q4_0", *given, *options)
    assert ran.code == 8 and ran.err.endswith("error: enough\n")
    assert [(each.gpu_layers, each.placement.split_mode) for each in loaded] == [(3, "none")]


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
