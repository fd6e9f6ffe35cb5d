"""The folder that the commands and examples of the pages run in."""

import json
import os
import shutil
from pathlib import Path

import pytest

from helpers.small_model import write_small
from helpers.support import EXAMPLES, RECORDED, made_once, quantize
from minitron.calibration import imatrix as collect_imatrix
from minitron_core.gguf import TYPE_ID
from minitron_quant.imatrix.collect import CollectSettings
from minitron_quant.mixed_precision import costs

_TEXT_BYTES, _SHORT_BYTES = 4_000, 2_600
_HELLASWAG_LINES = 24 * 6
_PROBLEM = {"question": "One and one?", "answer": "One and one are two.\n#### 2"}
_SCHEMA = {"type": "object", "properties": {"number": {"type": "integer", "maximum": 9}}}


@pytest.fixture(scope="session")
def prepared(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, in small: examples/ with short texts and a short job, a
    model with its importance matrix and two levels, and files of questions.
    """

    def make(folder: Path) -> Path:
        shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("out"))
        for name in ("calibration.txt", "held-out.txt"):
            text = folder / "examples" / name
            text.write_bytes(text.read_bytes()[:_TEXT_BYTES])
            (folder / name).write_bytes(text.read_bytes()[:_SHORT_BYTES])
        job = folder / "examples" / "nano.toml"
        job.write_text(job.read_text().replace('["all"]', '["Q4_K_M", "Q8_0"]'))
        write_small(nano_llama, folder / "model-F16.gguf")
        texts = CollectSettings((folder / "calibration.txt",))
        collect_imatrix(folder / "model-F16.gguf", folder / "model.imatrix.gguf", texts)
        quantize(folder / "model-F16.gguf", folder / "levels", "Q4_0", "Q8_0")
        questions = (RECORDED / "hellaswag.txt").read_text().splitlines(keepends=True)
        (folder / "hellaswag_val_full.txt").write_text("".join(questions[:_HELLASWAG_LINES]))
        shutil.copy(RECORDED / "winogrande.csv", folder)
        (folder / "gsm8k.jsonl").write_text(json.dumps(_PROBLEM))
        (folder / "schema.json").write_text(json.dumps(_SCHEMA))
        return folder

    return made_once(tmp_path_factory.getbasetemp() / "prepared", make)


@pytest.fixture
def workshop(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder. Mixes are of few types, and of few rows' errors."""
    folder = tmp_path / "workshop"
    shutil.copytree(prepared, folder, copy_function=os.link)
    kinds = ("q3_K", "q4_0", "q4_K", "q6_K")
    monkeypatch.setattr(costs, "ENCODABLE", frozenset(TYPE_ID[name] for name in kinds))
    monkeypatch.setattr(costs, "_ROWS", 32)
    monkeypatch.chdir(folder)
    return folder
