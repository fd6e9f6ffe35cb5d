"""The report: one page that needs nothing else, and what its pictures show."""

import builtins
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.support import EXAMPLES, RECORDED
from minitron_cli.pipeline.job_file import load_jobs
from minitron_cli.report import html, plots
from minitron_cli.report.write import Findings, commands, write_reports
from minitron_quant.imatrix.files import read_imatrix
from minitron_quant.imatrix.statistics import weight_statistics
from minitron_quant.perplexity.measures import Row
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


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_plots_name_every_file() -> None:
    picture = plots.perplexity_against_size(ROWS)
    assert {"Q2_K", "Q4_K_M", "Q4_1", "Q8_0", "Perplexity"} <= set(texts(picture))
    assert picture == plots.perplexity_against_size(ROWS), "the same in every run"
    # the colour of text and lines is the page's: dark on light, light on dark
    assert "currentColor" in picture and plots._INK not in picture


def test_plots_leave_out_what_was_not_measured() -> None:
    assert plots.divergence_against_size(ROWS) == ""
    assert plots.importance_by_layer([]) == ""
    assert html.figure("", "nothing") == ""


def test_importance_by_layer_draws_layers_and_roles() -> None:
    picture = plots.importance_by_layer(weight_statistics(read_imatrix(IMATRIX)))
    assert {"attn_q", "attn_output", "ffn_down", "Layer"} <= set(texts(picture))


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12, unique=True)
)
def test_pareto_keeps_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    front = {points[number] for number in plots.pareto(points)}
    unbeaten = {
        p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
    }
    assert front == unbeaten


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
    assert len(re.findall("<svg", text)) == 2
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


def test_commands_name_no_local_folder(findings: Findings, tmp_path: Path) -> None:
    lines = commands(findings)
    assert [line.split()[1] for line in lines] == ["convert", "imatrix", "quantize", "ppl"]
    assert not any(str(tmp_path) in line or str(EXAMPLES) in line for line in lines)
    assert "--chunks 4" in lines[1] and "--imatrix" in lines[2]


@given(st.text(max_size=30))
def test_page_escapes_names(name: str) -> None:
    shown = html.page(name, name, [html.table([name], [[name]]), html.listing([name])])
    assert "<script" not in html.page("<script>alert(1)</script>", "", [])
    assert shown.count("<table") == 1


def test_check_before_names_a_missing_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *more: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(plots.MinitronError, match="needs matplotlib"):
        plots.require_matplotlib()
