"""What the pages promise: their length, links, tables and words, and that the job file is whole."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from helpers.markdown import GENERATED, blocks, pages
from helpers.support import ROOT
from minitron_cli.main import app
from minitron_cli.pipeline import job_file

README = ROOT / "README.md"
_WORDS = 600
_LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)")
# what reads as a translation; see CONTRIBUTING.md
_AVOIDED = re.compile(r"\b(anew|(is|are) told|is no [a-z]|its kin)\b")


def test_readme_has_at_most_600_words() -> None:
    words = [word for word in README.read_text().split() if any(map(str.isalnum, word))]
    assert len(words) <= _WORDS


def test_readme_lists_every_command() -> None:
    group: Any = typer.main.get_command(app)
    rows = [line for line in README.read_text().splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(group.commands)


def test_every_page_is_linked_from_the_front() -> None:
    front = (README, ROOT / "CONTRIBUTING.md")
    links = {link for page in front for link in _LINK.findall(page.read_text())}
    assert {str(page.relative_to(ROOT)) for page in (*pages()[1:], GENERATED)} <= links


@pytest.mark.parametrize("page", [*pages(), ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_pages_link_to_what_exists(page: Path) -> None:
    links = _LINK.findall(page.read_text())
    assert [link for link in links if link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [*pages(), ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_pages_avoid_words_of_a_translation(page: Path) -> None:
    assert _AVOIDED.findall(page.read_text()) == []


def test_job_file_of_the_docs_names_every_key(tmp_path: Path) -> None:
    (block,) = (b for b in blocks(ROOT / "docs" / "job-files.md") if b.language == "toml")
    path = tmp_path / "job.toml"
    path.write_text(block.text)
    (job,) = job_file.load_jobs(path)
    for section in fields(job):
        table = block.text.partition(f"[{section.name}]")[2].partition("\n[")[0]
        keys = {field.name for field in fields(getattr(job, section.name))} - {"data"}
        assert keys <= set(re.findall(r"^(\w+) =", table, re.MULTILINE)), section.name
