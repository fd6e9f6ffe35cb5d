"""The numbers of docs/walkthrough.md are those of our own plans for the published shape."""

import json
import re
import shutil
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from helpers.support import EXAMPLES, ROOT
from minitron_cli.hub.texts import TEXTS
from minitron_cli.pipeline.dry_run import forecast
from minitron_cli.pipeline.job_file import load_jobs

PAGE = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
SHARED = ROOT.parent / "shared"
MIB = 1 << 20


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The published config and tokenizer, with weights that are a hole."""
    source = SHARED / "nvidia-configs" / "Llama-3.1-Minitron-4B-Width-Base"
    if not source.is_dir():
        pytest.skip("needs the published config, which is not in the repository")
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    for path in (SHARED / "tokenizers" / "llama3.1").iterdir():
        shutil.copy(path, folder)
    end, header = 0, {}
    for line in (source / "tensor-list.derived.tsv").read_text().splitlines():
        name, shape = line.split("\t")
        sizes = [int(size) for size in shape.split("x")]
        start, end = end, end + 2 * prod(sizes)
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    return folder


def test_walkthrough_sizes_are_planned(checkpoint: Path) -> None:
    (job,) = load_jobs(EXAMPLES / "width.toml")
    planned = forecast(replace(job, model=replace(job.model, source=str(checkpoint))))
    told = dict(re.findall(r"^\| (I?Q\w+) \| (\d+) \|", PAGE, re.MULTILINE))
    levels = {
        each["name"].rpartition("-")[2].removesuffix(".gguf"): each["bytes"]
        for each in planned["quantize"]["outputs"]
    }
    assert told == {name: f"{size / MIB:.0f}" for name, size in levels.items()}
    (full,) = planned["convert"]["outputs"]
    assert f"| convert | {full['bytes'] / 1024 / MIB:.2f} GiB |" in PAGE
    assert f"{sum(levels.values()) / 1024 / MIB:.2f} GiB" in PAGE


def test_walkthrough_texts_are_those_of_the_registry() -> None:
    assert all(f"{text.bytes:,}" in PAGE and text.file in PAGE for text in TEXTS)
    job = (EXAMPLES / "width.toml").read_text()
    assert all(text.file in job for text in TEXTS)
