"""Job files and the pipeline that runs them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.support import EXAMPLES, RECORDED, fails
from minitron_cli.pipeline import executors
from minitron_cli.pipeline.checks import check_before
from minitron_cli.pipeline.job_file import Job, load_jobs
from minitron_cli.pipeline.run import STAGES
from minitron_cli.pipeline.run import run as run_job_file
from minitron_convert.plan import plan
from minitron_core.errors import Damaged, MinitronError, NotFound, Usage
from minitron_quant.perplexity.table import measure

PUBLISHED = ["Quant", "Size (MB)", "PPL", "Size (%)", "Accuracy (%)", "PPL error rate"]
WITHOUT_TRIALS = ["done"] * 4 + ["skipped"] * 2 + ["done"]
SMALL = """
[model]
source = "{examples}/nano-nemotron"
outtype = "f16"
[calibration]
text = ["calibration.txt"]
chunks = 2
ctx = 64
[quantize]
levels = ["Q4_0", "q5_0"]
[measure]
text = "held-out.txt"
ctx = 128
chunks = 2
[output]
directory = "out"
report = ["md", "csv", "json"]
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    for name in ("calibration.txt", "held-out.txt"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text()[:3000])
    path = tmp_path / "job.toml"
    path.write_text(SMALL.format(examples=EXAMPLES))
    return path


def run(path: Path) -> tuple[list[str], list[str]]:
    """Levels of the table, and the stages that did some work."""
    worked: list[str] = []

    def listen(event: Any) -> None:
        if event.total and event.stage not in (
            *worked,
            "check",
        ):  # that what is there is what was made
            worked.append(event.stage)

    (finished,) = run_job_file(path, resume=True, progress=listen)
    if finished.error is not None:
        raise finished.error
    return [row.level for row in finished.rows], worked


def test_run_goes_from_checkpoint_to_report(job_file: Path) -> None:
    levels, worked = run(job_file)
    assert levels == ["Q4_0", "Q5_0", "F16"]
    assert worked == ["convert", "imatrix", "quantize", "divergence"]
    out = job_file.parent / "out"
    markdown = (out / "report.md").read_text()
    header = next(line for line in markdown.splitlines() if line.startswith("|"))
    shown = [cell.strip() for cell in header.strip("|").split("|")]
    assert shown[: len(PUBLISHED)] == PUBLISHED and "KLD" in shown
    document = json.loads((out / "report.json").read_text())
    rows = document["rows"]
    assert [row["size_mib"] for row in rows] == sorted(row["size_mib"] for row in rows)
    reference = rows[-1]
    assert reference["accuracy_pct"] == 100 and reference["size_pct"] == 100
    for row in rows:
        assert row["accuracy_pct"] == pytest.approx(100 * reference["ppl"] / row["ppl"])
    assert (out / "report.csv").read_text().splitlines()[0] == ",".join(shown)
    assert str(EXAMPLES) not in (out / "report.json").read_text() + markdown


def test_run_again_does_only_what_changed(job_file: Path) -> None:
    first = run(job_file)[0]
    assert run(job_file) == (first, [])
    out = job_file.parent / "out"
    (quantized,) = out.glob("*-Q4_0.gguf")
    quantized.unlink()
    assert run(job_file) == (first, ["quantize"])  # the same bytes need no new measurement
    job_file.write_text(job_file.read_text().replace("ctx = 128", "ctx = 64"))
    assert run(job_file)[1] == ["divergence"]
    job_file.write_text(job_file.read_text().replace('"q5_0"', '"q8_0"'))
    levels, worked = run(job_file)
    assert levels == ["Q4_0", "Q8_0", "F16"] and worked == ["quantize", "divergence"]


def test_check_before_asks_for_resume_of_a_changed_job(job_file: Path) -> None:
    check_before(load_jobs(job_file), resume=False)
    run(job_file)
    check_before(load_jobs(job_file), resume=False)
    job_file.write_text(job_file.read_text().replace('"q5_0"', '"q8_0"'))
    with pytest.raises(MinitronError, match="another job") as caught:
        check_before(load_jobs(job_file), resume=False)
    assert "--resume" in caught.value.hint
    check_before(load_jobs(job_file), resume=True)


def test_load_jobs_reads_the_bundled_job() -> None:
    (job,) = load_jobs(EXAMPLES / "nano.toml")
    assert job.model.source == str(EXAMPLES / "nano-llama")
    assert job.quantize.levels == ("all",)


def test_run_dry_run_shows_what_a_run_writes(job_file: Path, minitron: Any) -> None:
    document = minitron("run", job_file, "--dry-run", "--json").document
    assert list(document) == ["convert", "imatrix", "quantize", "measure", "report", "disk"]
    out = job_file.parent / "out"
    assert not out.exists()
    run(job_file)
    outputs = [each for name in STAGES if name in document for each in document[name]["outputs"]]
    assert len(outputs) == 1 + 1 + 2 + 3
    for each in outputs:
        size = (out / each["name"]).stat().st_size
        if document["convert"]["outputs"] == [each]:
            assert each["bytes"] == size
        elif each in document["quantize"]["outputs"]:
            # but for the keys that name the importance matrix
            assert 0 <= size - each["bytes"] < 512
    shown = minitron("run", job_file, "--dry-run").out
    assert "calibration.txt → " in shown and "free" in shown.splitlines()[-1]


def test_run_compares_contents_not_times(job_file: Path, tmp_path: Path) -> None:
    source = tmp_path / "nano"
    shutil.copytree(EXAMPLES / "nano-nemotron", source)
    text = job_file.read_text().replace(f"{EXAMPLES}/nano-nemotron", str(source))
    job_file.write_text(text.replace('report = ["md", "csv", "json"]', 'report = ["json"]'))
    run(job_file)
    weights = source / "model.safetensors"
    os.utime(weights, (1, 1))
    assert run(job_file)[1] == []
    data = bytearray(weights.read_bytes())
    stat = weights.stat()
    data[-2] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run(job_file)[1] == ["convert", "imatrix", "quantize", "divergence"]


def test_run_keeps_the_other_model_when_one_fails(job_file: Path, minitron: Any) -> None:
    broken = job_file.parent / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    text = job_file.read_text()
    sources = f'source = ["broken", "{EXAMPLES}/nano-nemotron"]'
    job_file.write_text(text.replace(f'source = "{EXAMPLES}/nano-nemotron"', sources))
    ran = minitron("run", job_file, "--json", "-q")
    assert ran.code == 4
    assert "error: broken: " in ran.err and "GPT2LMHeadModel" in ran.err
    failed, done = ran.document
    outcomes = [[stage["outcome"] for stage in each["stages"]] for each in (failed, done)]
    assert outcomes == [["failed"] + ["skipped"] * 6, WITHOUT_TRIALS]
    assert [row["level"] for row in done["rows"]] == ["Q4_0", "Q5_0", "F16"]
    assert (job_file.parent / "out" / "nano-nemotron" / "report.json").exists()
    assert not (job_file.parent / "out" / "broken").exists()


def test_run_reports_what_was_measured_before_a_failure(
    job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(*more: Any) -> Any:
        rows = measure(*more)
        yield next(rows)
        raise Damaged("the next file is damaged")

    monkeypatch.setattr(executors, "measure", half)
    (finished,) = run_job_file(job_file)
    assert isinstance(finished.error, Damaged)
    assert [stage.outcome for stage in finished.stages] == ["done"] * 3 + [
        "failed",
        "skipped",
        "skipped",
        "done",
    ]
    assert len(json.loads((job_file.parent / "out" / "report.json").read_text())["rows"]) == 1


def test_run_converts_with_one_plan(job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Path] = []

    def count(settings: Any, *more: Any, **named: Any) -> Any:
        planned.append(settings.source)
        return plan(settings, *more, **named)

    monkeypatch.setattr("minitron_convert.convert.plan", count)
    job_file.write_text(
        job_file.read_text().split("[measure]")[0] + '[output]\ndirectory = "out"\n'
    )
    run(job_file)
    assert len(planned) == 1
    run(job_file)
    assert len(planned) == 1


def test_run_makes_levels_of_a_q8_0_conversion(job_file: Path, minitron: Any) -> None:
    job_file.write_text(job_file.read_text().replace('"f16"', '"q8_0"'))
    ran = minitron("run", job_file, "-q", "--json")
    assert ran.code == 0, ran.err
    assert [row["level"] for row in ran.document["rows"]] == ["Q4_0", "Q5_0", "Q8_0"]
    report = json.loads((job_file.parent / "out" / "report.json").read_text())
    assert "--outtype q8_0" in report["commands"][0]
    assert any("--allow-requantize" in line for line in report["commands"])


def load(tmp_path: Path, text: str) -> Job:
    path = tmp_path / "job.toml"
    path.write_text(text)
    (job,) = load_jobs(path)
    return job


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[modle]", ["modle", "nearest is model"]),
        ("[model]\nsource = 'x'\nouttyp = 'f16'", ["outtyp", "nearest is outtype"]),
        ("[model]", ["needs a source"]),
        ("[model]\nsource = 3", ["must be a text or a list"]),
        ("[model]\nsource = 'x'\nouttype = 'q4_0'", ["one of auto"]),
        ("model = 3", ["must be a section"]),
        ("[model]\nsource = 'x'\n[measure]\nctx = 0", ["from 1 on"]),
        ("[model]\nsource = 'x'\n[measure]\nctx = true", ["from 1 on"]),
        ("[model]\nsource = 'x'\n[quantize]\nlevels = 'all'", ["list of levels"]),
        ("[model]\nsource = 'x'\n[output]\nreport = ['pdf']", ["md, html, csv, json"]),
        ("[model]\nsource = ['a/x', 'b/x']", ["called x"]),
        ("not toml at all", ["not a TOML"]),
    ],
)
def test_load_jobs_names_what_is_wrong(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(Usage) as caught:
        load(tmp_path, text)
    for word in words:
        assert word in f"{caught.value} {caught.value.hint}"


@given(text=st.text(alphabet='[]="\nmodelsurc0.', max_size=60))
def test_load_jobs_takes_any_text_or_explains(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        load(tmp_path_factory.mktemp("job"), text)
    except Usage as error:
        assert str(error)


def test_load_jobs_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_jobs(tmp_path / "none.toml")


def test_run_has_tasks_and_speed_as_stages(job_file: Path, minitron: Any) -> None:
    text = job_file.read_text().replace('["Q4_0", "q5_0"]', '["q4_0"]')
    data = RECORDED / "hellaswag.txt"
    job_file.write_text(
        text.replace('["md", "csv", "json"]', '["md", "html", "json"]')
        + f'[tasks]\nhellaswag = "{data}"\nlimit = 10\n'
        + "[speed]\nprompt = 32\ngenerate = 8\nrepetitions = 1\n"
    )
    first = minitron("run", job_file, "-q", "--json")
    assert first.code == 0, first.err
    assert [stage["outcome"] for stage in first.document["stages"]] == ["done"] * 7
    out = job_file.parent / "out"
    report = json.loads((out / "report.json").read_text())
    (task,) = report["tasks"]
    assert task["task"] == "hellaswag" and [row["questions"] for row in task["rows"]] == [10, 10]
    assert task["rows"][1]["flips"] is not None, "compared with the full model"
    assert [(row["n_prompt"], row["n_gen"]) for row in report["speed"]] == [(32, 0), (0, 8)] * 2
    for form in ("md", "html"):
        shown = (out / f"report.{form}").read_text()
        assert "10 questions of hellaswag.txt" in shown and "Generation t/s" in shown
    again = minitron("run", job_file, "-q", "--json", "--resume").document
    outcomes = {stage["name"]: stage["outcome"] for stage in again["stages"]}
    assert outcomes["tasks"] == outcomes["speed"] == "up to date"


@pytest.mark.parametrize(
    ("old", "new", "code", "told"),
    [
        ('"held-out.txt"', '"none.txt"', 3, "none.txt, which the job names, does not exist"),
        ('["calibration.txt"]', '["a.txt", "b.txt"]', 3, "a.txt (and 1 more files)"),
        ('"q5_0"', '"q5_9"', 4, "no level called q5_9"),
        ("/nano-nemotron", "", 3, "config.json"),
        (
            'directory = "out"',
            'directory = "job.toml/out"',
            7,
            "is not a folder that can be written",
        ),
        ('text = ["calibration.txt"]', 'text = ["."]', 3, "is a folder, not a file"),
        ("[output]", '[tasks]\nhellaswag = "none.txt"\n[output]', 3, "none.txt"),
    ],
)
def test_run_checks_what_a_job_names_before_any_work(
    job_file: Path, minitron: Any, old: str, new: str, code: int, told: str
) -> None:
    job_file.write_text(job_file.read_text().replace(old, new))
    for more in ((), ("--dry-run",)):
        ran = minitron("run", job_file, *more)
        assert ran.code == code and told in ran.err, ran.err
    assert not (job_file.parent / "out").exists()


@pytest.mark.parametrize("level", ["iq2_m", "iq3_xxs"])
def test_run_asks_for_a_calibration_text_before_any_work(
    job_file: Path, minitron: Any, level: str
) -> None:
    text = job_file.read_text().replace("q5_0", level)
    job_file.write_text(text.replace('text = ["calibration.txt"]\n', ""))
    for more in ((), ("--dry-run",)):
        fails(minitron("run", job_file, *more), 5, level.upper(), "name a text in [calibration]")
    assert not (job_file.parent / "out").exists()


def test_run_takes_threads_and_layers(job_file: Path, minitron: Any) -> None:
    job_file.write_text(job_file.read_text().replace('"q5_0"', '"q4_0"'))
    assert minitron("run", job_file, "--threads", "1", "--gpu-layers", "0", "-q").code == 0
    again = minitron("run", job_file, "--threads", "2", "--json")
    outcomes = {stage["name"]: stage["outcome"] for stage in again.document["stages"]}
    assert [outcomes[name] for name in ("convert", "imatrix", "quantize")] == ["up to date"] * 3
