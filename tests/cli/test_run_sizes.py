"""Sizes in a job file: solved mixes beside the levels, in the table and the report."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES, fails
from minitron_cli.pipeline.mixes import parse_wanted
from minitron_core.errors import MinitronError
from minitron_core.gguf import TYPE_ID
from minitron_quant.chunking import ChunkSettings
from minitron_quant.levels import level_named
from minitron_quant.mixed_precision import costs
from minitron_quant.mixed_precision.build_mix import MixTarget
from minitron_quant.mixed_precision.measure import SensitivitySettings

JOB = """
[model]
source = "{examples}/nano-nemotron"
[calibration]
text = ["calibration.txt"]
chunks = 2
ctx = 64
[quantize]
levels = ["Q4_0"]
sizes = ["2.5M", "like:Q4_0", "like:Q4_0"]
[measure]
text = "held-out.txt"
chunks = 4
ctx = 64
divergence = true
[output]
directory = "out"
"""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1.5G", MixTarget(size=1_500_000_000)),
        ("3.5bpw", MixTarget(bits=3.5)),
        ("like:Q3_K_M", MixTarget(like=level_named("Q3_K_M"))),
        ("kld:0.02", MixTarget(max_kld=0.02)),
    ],
)
def test_parse_wanted_reads_sizes(text: str, wanted: MixTarget) -> None:
    assert parse_wanted(text) == wanted


@pytest.mark.parametrize("text", ["", "like:Q9", "kld:x", "big", "as:1G"])
def test_parse_wanted_refuses_other_texts(text: str) -> None:
    with pytest.raises(MinitronError, match=r"is not a size|no level called"):
        parse_wanted(text)


def test_run_puts_solved_mixes_into_the_report(
    minitron: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = frozenset(TYPE_ID[name] for name in ("q2_K", "q4_0", "q6_K"))
    monkeypatch.setattr(costs, "ENCODABLE", kinds)
    monkeypatch.setattr(costs, "_ROWS", 32)
    small = partial(SensitivitySettings, tokens=64, chunks=ChunkSettings(n_ctx=64, n_batch=64))
    monkeypatch.setattr("minitron_cli.pipeline.mixes.SensitivitySettings", small)
    for name in ("calibration.txt", "held-out.txt"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text()[:6000])
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(examples=EXAMPLES))
    ran = minitron("run", job)
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    rows = {row["level"]: row for row in report["rows"]}
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*bpw.gguf")}
    assert len(sizes) == 2 and min(sizes.values()) <= 2_500_000
    solved = [row for level, row in rows.items() if level.endswith("bpw")]
    assert len(solved) == 2 and "Q4_0" in rows
    assert all(row["kld_mean"] > 0 for row in solved)
    assert sum("--like Q4_0" in line for line in report["commands"]) == 2
    again = minitron("run", job, "--resume")
    assert again.code == 0 and "quantize: up to date" in again.err
    job.write_text(JOB.format(examples=EXAMPLES).replace('"2.5M"', '"some"'))
    fails(minitron("run", job, "--resume"), 2, "not a size")
