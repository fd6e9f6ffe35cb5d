"""Job files and the pipeline that runs them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_cli.jobs import Job, load_job
from minitron_cli.output import Output
from minitron_cli.pipeline import Pipeline, refuse_used_folder
from minitron_cli.tables import PUBLISHED
from minitron_engine.errors import MinitronError, NotFound, Usage
from support import EXAMPLES

SMALL = """
[model]
source = "{examples}/nano-llama"
outtype = "f16"
[calibration]
text = ["{examples}/calibration.txt"]
chunks = 2
[quantize]
levels = ["IQ2_XXS", "q4_0"]
[measure]
text = "{examples}/held-out.txt"
ctx = 128
chunks = 3
[output]
directory = "out"
report = ["md", "csv", "json"]
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(SMALL.format(examples=EXAMPLES))
    return path


def run(path: Path) -> tuple[list[str], list[str]]:
    """Levels of the table, and the stages that did some work."""
    worked: list[str] = []

    def listen(event: Any) -> None:
        if event.stage not in worked:
            worked.append(event.stage)

    rows = Pipeline(load_job(path), Output(quiet=True), listen).run()
    return [row.level for row in rows], worked


def test_a_job_from_checkpoint_to_report(job_file: Path) -> None:
    levels, worked = run(job_file)
    assert levels == ["IQ2_XXS", "Q4_0", "F16"]
    assert worked == ["convert", "imatrix", "quantize", "perplexity"]
    out = job_file.parent / "out"
    markdown = (out / "report.md").read_text()
    header = next(line for line in markdown.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in header.strip("|").split("|")] == list(PUBLISHED)
    document = json.loads((out / "report.json").read_text())
    rows = document["rows"]
    assert [row["size_mib"] for row in rows] == sorted(row["size_mib"] for row in rows)
    reference = rows[-1]
    assert reference["accuracy_pct"] == 100 and reference["size_pct"] == 100
    for row in rows:
        assert row["accuracy_pct"] == pytest.approx(100 * reference["ppl"] / row["ppl"])
    assert (out / "report.csv").read_text().splitlines()[0] == ",".join(PUBLISHED)
    assert str(EXAMPLES) not in (out / "report.json").read_text() + markdown


def test_running_again_does_only_what_changed(job_file: Path) -> None:
    first = run(job_file)[0]
    assert run(job_file) == (first, [])
    out = job_file.parent / "out"
    (quantized,) = out.glob("*-Q4_0.gguf")
    quantized.unlink()
    assert run(job_file) == (first, ["quantize"])  # the same bytes need no new measurement
    job_file.write_text(job_file.read_text().replace("ctx = 128", "ctx = 64"))
    assert run(job_file)[1] == ["perplexity"]
    job_file.write_text(job_file.read_text().replace('"q4_0"', '"q8_0"'))
    levels, worked = run(job_file)
    assert levels == ["IQ2_XXS", "Q8_0", "F16"] and worked == ["quantize", "perplexity"]


def test_an_earlier_run_must_be_resumed(job_file: Path) -> None:
    refuse_used_folder(load_job(job_file))
    run(job_file)
    with pytest.raises(MinitronError, match="earlier run") as caught:
        refuse_used_folder(load_job(job_file))
    assert "--resume" in caught.value.hint


def test_the_bundled_job_is_valid() -> None:
    job = load_job(EXAMPLES / "nano.toml")
    assert job.model.source == str(EXAMPLES / "nano-llama")
    assert job.quantize.levels == ("all",)


def test_dry_run_writes_nothing(
    job_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from minitron_cli.main import main

    monkeypatch.setattr(sys, "argv", ["minitron", "run", str(job_file), "--dry-run", "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert set(json.loads(capsys.readouterr().out)) == {
        "convert",
        "imatrix",
        "quantize",
        "measure",
        "report",
    }
    assert not (job_file.parent / "out").exists()


def load(tmp_path: Path, text: str) -> Job:
    path = tmp_path / "job.toml"
    path.write_text(text)
    return load_job(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[modle]", ["modle", "nearest is model"]),
        ("[model]\nsource = 'x'\nouttyp = 'f16'", ["outtyp", "nearest is outtype"]),
        ("[model]", ["needs a source"]),
        ("[model]\nsource = 3", ["must be a text"]),
        ("[model]\nsource = 'x'\nouttype = 'q4_0'", ["one of auto"]),
        ("model = 3", ["must be a section"]),
        ("[model]\nsource = 'x'\n[measure]\nctx = 0", ["from 1 on"]),
        ("[model]\nsource = 'x'\n[measure]\nctx = true", ["from 1 on"]),
        ("[model]\nsource = 'x'\n[quantize]\nlevels = 'all'", ["list of levels"]),
        ("[model]\nsource = 'x'\n[output]\nreport = ['pdf']", ["md, html, csv, json"]),
        ("not toml at all", ["no TOML"]),
    ],
)
def test_bad_job_files(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(Usage) as caught:
        load(tmp_path, text)
    for word in words:
        assert word in f"{caught.value} {caught.value.hint}"


@given(text=st.text(alphabet='[]="\nmodelsurc0.', max_size=60))
def test_any_text_is_a_job_or_one_sentence(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        load(tmp_path_factory.mktemp("job"), text)
    except Usage as error:
        assert str(error)


def test_a_missing_job_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_job(tmp_path / "none.toml")
