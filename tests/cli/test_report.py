"""The report: one page that needs nothing else, and what its pictures show."""

import re
import xml.etree.ElementTree as ET
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.support import EXAMPLES, RECORDED
from minitron_cli.pipeline.job_file import load_jobs
from minitron_cli.report import html
from minitron_cli.report.figure import Axis
from minitron_cli.report.points import shown_points
from minitron_cli.report.write import Findings, commands, write_reports
from minitron_quant.perplexity.measures import Divergence, Row
from minitron_quant.quantize.run import LevelResult

IMATRIX = RECORDED / "nano-llama.imatrix.gguf"


def row(level: str, size: float, ppl: float) -> Row:
    return Row(
        model=f"nano-{level}.gguf",
        level=level,
        size_mib=size,
        size_pct=None,
        ppl=ppl,
        ppl_error=0.5,
        accuracy_pct=None,
        chunks=4,
        device="CPU",
    )


ROWS = [row("Q2_K", 2, 30.0), row("Q4_K_M", 4, 20.0), row("Q4_1", 5, 21.0), row("Q8_0", 8, 19.0)]


def measured(row: Row, kld: float | None, nll: tuple[float, ...]) -> Row:
    """A row with a mean divergence and values by chunk."""
    if kld is None:
        return replace(row, chunk_nll=nll)
    values: dict[str, Any] = dict.fromkeys((each.name for each in fields(Divergence)), 1.0)
    divergence = Divergence(**values | {"kld_mean": kld, "kld_error": kld / 10})
    chunks = (0.8 * kld, kld, 1.2 * kld)
    return replace(row, divergence=divergence, chunk_kld=chunks, chunk_nll=nll)


def test_shown_points_are_divergences_where_every_level_has_one() -> None:
    full = measured(row("F16", 16, 18.0), None, (2.0, 3.0, 4.0))
    levels = [measured(each, 0.1 / each.size_mib, (2.5, 3.5, 4.5)) for each in ROWS]
    shown = shown_points([*levels, full], full.model)
    assert shown is not None and shown.axis == Axis("KL divergence from F16 (nats)", "log")
    assert [point.name for point in shown.points] == ["Q2_K", "Q4_K_M", "Q4_1", "Q8_0"]
    for point in shown.points:
        assert 0 < point.low < point.value < point.high
    assert "KLD 0.050000 ± 0.005000" in shown.points[0].about


def test_shown_points_are_paired_ratios_without_divergences() -> None:
    full = measured(row("F16", 16, 18.0), None, (2.0, 3.0, 4.0))
    levels = [measured(each, None, (2.1, 3.1, 4.4)) for each in ROWS]
    shown = shown_points([full, *levels], full.model)
    assert shown is not None and shown.axis.kind == "asinh" and len(shown.points) == 4
    point = shown.points[0]
    assert point.value == pytest.approx(0.2) and 0.1 <= point.low + 1e-9 < 0.2 < point.high < 0.41


def test_shown_points_are_perplexities_where_nothing_is_comparable() -> None:
    shown = shown_points(ROWS, "nano-F16.gguf")
    assert shown is not None and shown.axis.title == "Perplexity"
    assert (shown.points[0].value, shown.points[0].low) == (30.0, 30.0 - 1.96 * 0.5)
    assert shown_points([], "nano-F16.gguf") is None


class Page(HTMLParser):
    """Collects what a page would load from elsewhere, and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "use", "path", "rect", "image"):
            self.open.append(tag)
        # glyphs and clips of the pictures refer to the page itself
        self.loads += [
            value
            for name, value in attrs
            if value
            and name in ("src", "href", "xlink:href")
            and not value.startswith(("#", "data:"))
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    job = tmp_path / "job.toml"
    job.write_text(
        f'[model]\nsource = "{EXAMPLES / "nano-llama"}"\n'
        f'[calibration]\ntext = ["{EXAMPLES / "calibration.txt"}"]\nchunks = 4\n'
        f'[quantize]\nlevels = ["Q2_K", "Q8_0"]\n'
        f'[measure]\ntext = "{EXAMPLES / "held-out.txt"}"\nchunks = 4\n'
        '[output]\nreport = ["md", "html", "csv", "json"]\n'
    )
    result: Any = LevelResult.__new__(LevelResult)
    for name, value in (("path", tmp_path / "nano-Q2_K.gguf"), ("sha256", "ab" * 32)):
        object.__setattr__(result, name, value)
    return Findings(load_jobs(job)[0], tmp_path / "nano-F16.gguf", IMATRIX, ROWS, [result])


def test_page_needs_no_other_file(findings: Findings, tmp_path: Path) -> None:
    write_reports(findings, tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.loads == [] and page.open == []
    assert "@import" not in text and "url(http" not in text
    assert len(re.findall("<svg", text)) == 3, "wide, narrow, and the importance matrix"
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    assert "ab" * 32 in text


def test_write_reports_agree_in_all_forms(findings: Findings, tmp_path: Path) -> None:
    write_reports(findings, tmp_path)
    forms = {kind: (tmp_path / f"report.{kind}").read_text() for kind in ("md", "html", "csv")}
    for text in forms.values():
        for each in ROWS:
            assert each.level in text and f"{each.ppl:.4f}" in text
    for line in commands(findings):
        assert line in forms["md"] and line in forms["html"]


def test_reports_say_which_file_to_choose(findings: Findings, tmp_path: Path) -> None:
    better = replace(ROWS[2], dominated_by=ROWS[1].model)
    rows = [ROWS[0], ROWS[1], better, ROWS[3]]
    write_reports(replace(findings, rows=rows), tmp_path)
    told = "Q4_1 (Q4_K_M is better and no larger)"
    for kind in ("md", "html"):
        assert told in (tmp_path / f"report.{kind}").read_text()
    assert "![Perplexity against size](report.svg)" in (tmp_path / "report.md").read_text()
    picture = ET.fromstring((tmp_path / "report.svg").read_text())
    assert {"Q4_1", "Q8_0"} <= {text.text for text in picture.iter() if text.tag.endswith("text")}


def test_commands_name_no_local_folder(findings: Findings, tmp_path: Path) -> None:
    lines = commands(findings)
    assert [line.split()[1] for line in lines] == ["convert", "imatrix", "quantize", "ppl"]
    assert not any(str(tmp_path) in line or str(EXAMPLES) in line for line in lines)
    assert "--chunks 4" in lines[1] and "--imatrix" in lines[2]


@given(st.text(max_size=30))
def test_page_escapes_names(name: str) -> None:
    shown = html.page(name, name, [html.table([name], [[name]]), html.listing([name])])
    assert html.page("<script>alert(1)</script>", "", []).count("<script") == 1, "its own"
    assert shown.count("<table") == 1
