"""The report as a browser shows it: at the width of a desk and of a phone, light and dark."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from helpers.browser import Page, browsing, chromium
from helpers.measured_levels import MEASURED
from helpers.support import EXAMPLES, RECORDED
from minitron_cli.pipeline.job_file import load_jobs
from minitron_cli.report.write import Findings, write_reports
from minitron_quant.perplexity.measures import Divergence, Row

pytestmark = pytest.mark.skipif(chromium() is None, reason="there is no Chromium here")

# what a reader would stumble over
MEASURE = """
const box = (node) => node.getBoundingClientRect();
const shown = (nodes) => [...nodes].filter((node) => box(node).width > 0);
const names = shown(document.querySelectorAll("svg.figure text"));
const dots = shown(document.querySelectorAll("svg.figure .dot"));
const covers = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
  && a.top < b.bottom - 1 && b.top < a.bottom - 1;
const collisions = [];
names.forEach((name, number) => {
  for (const other of names.slice(number + 1))
    if (covers(box(name), box(other))) collisions.push([name.textContent, other.textContent]);
  for (const dot of dots)
    if (covers(box(name), box(dot))) collisions.push([name.textContent, "a point"]);
});
const wide = [...document.querySelectorAll("body > *, figure > *, text")].filter((node) =>
  node.tagName !== "SCRIPT" && (box(node).right > innerWidth + 0.5 || box(node).left < -0.5));
const table = document.querySelector("table.sortable");
const column = (number) => [...table.tBodies[0].rows].map((row) => row.cells[number].textContent);
const press = (number) => table.tHead.rows[0].cells[number].querySelector("button").click();
press(6);
const ascending = column(6);
press(6);
const descending = column(6);
const point = document.querySelector("svg.figure.wide .point");
point.dispatchEvent(new Event("pointerenter"));
const tip = document.querySelector("div.tip");
return {
  innerWidth, scrollWidth: document.documentElement.scrollWidth, collisions,
  wide: wide.map((node) => node.outerHTML.slice(0, 80)),
  names: names.filter((name) => name.classList.contains("name")).map((name) => name.textContent),
  size: Math.min(...names.map((name) => box(name).height)),
  ascending, descending, tip: tip.textContent, lit: document.querySelectorAll("tr.lit").length,
  paper: getComputedStyle(document.body).backgroundColor,
};
"""


def levels() -> list[Row]:
    """All levels, and the full model that they are compared with."""
    known: dict[str, Any] = dict.fromkeys((each.name for each in fields(Divergence)), 1.0)
    rows = []
    for name, (size, ppl, kld) in MEASURED.items():
        divergence = Divergence(**known | {"kld_mean": kld, "kld_error": kld / 40})
        row = Row(f"nano-{name}.gguf", name, size, ppl, 15.0, 95.0, 3.1, 24, "CPU")
        rows.append(replace(row, divergence=divergence))
    return [*rows, Row("nano-F16.gguf", "F16", 15.39, 84.3932, 100.0, 100.0, 3.1, 24, "CPU")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    job = folder / "job.toml"
    job.write_text(
        f'[model]\nsource = "{EXAMPLES / "nano-llama"}"\n'
        f'[measure]\ntext = "{EXAMPLES / "held-out.txt"}"\n[output]\nreport = ["html"]\n'
    )
    imatrix = RECORDED / "nano-llama.imatrix.gguf"
    findings = Findings(load_jobs(job)[0], folder / "nano-F16.gguf", imatrix, levels(), [])
    write_reports(findings, folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def measured_in(tab: Page, page: Path, width: int, scheme: str) -> Any:
    tab.color_scheme(scheme)
    tab.open(f"{page.as_uri()}?{width}{scheme}", width)
    return tab.value(f"(() => {{{MEASURE}}})()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
def test_report_fits_its_window_and_covers_no_name(
    width: int, scheme: str, page: Path, tab: Page
) -> None:
    found = measured_in(tab, page, width, scheme)
    assert found["innerWidth"] == width and found["scrollWidth"] <= width
    assert found["wide"] == [] and found["collisions"] == []
    assert sorted(found["names"]) == sorted(MEASURED) and found["size"] >= 9
    assert found["paper"] == ("rgb(20, 24, 28)" if scheme == "dark" else "rgb(255, 255, 255)")


def test_report_sorts_its_table_and_tells_of_points(page: Path, tab: Page) -> None:
    found = measured_in(tab, page, 1280, "light")
    ascending, descending = found["ascending"], found["descending"]
    numbers = [float(cell) for cell in ascending[:-1]]
    assert numbers == sorted(numbers) and ascending[-1] == "", "F16 has no divergence"
    assert [float(cell) for cell in descending[:-1]] == numbers[::-1] and descending[-1] == ""
    assert found["tip"].startswith("IQ1_S: ") and "KLD" in found["tip"] and found["lit"] == 1


def test_report_fits_a_sheet_of_paper(page: Path, tab: Page) -> None:
    tab.send("Emulation.setEmulatedMedia", media="print")
    tab.open(f"{page.as_uri()}?print", 720)  # A4 between margins, 96 pixels an inch
    try:
        assert tab.value("document.documentElement.scrollWidth") <= 720
        shown = "getComputedStyle(document.querySelector('svg.wide')).display"
        assert tab.value(shown) == "block"
        assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    finally:
        tab.send("Emulation.setEmulatedMedia", media="")
