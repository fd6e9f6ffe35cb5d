"""docs/cli.md says what --help says."""

from typing import Any

import typer

from helpers.support import ROOT
from minitron_cli.main import app
from minitron_cli.manual import JOB_PATH, PATH, job_page, manual
from minitron_cli.pipeline.job_keys import job_keys


def test_manual_is_the_page_in_docs() -> None:
    assert (ROOT / PATH).read_text(encoding="utf-8") == manual(), "run make manual"


def test_job_page_has_the_table_of_keys() -> None:
    page = (ROOT / JOB_PATH).read_text(encoding="utf-8")
    assert page == job_page(page), "run make manual"
    assert all(f"| `[{key.section}]` `{key.name}` |" in page for key in job_keys())


def test_manual_has_every_command_and_every_option() -> None:
    group: Any = typer.main.get_command(app)
    sections = manual().split("\n## minitron ")[1:]
    assert len(sections) == len(group.commands)
    for section, (name, command) in zip(sections, group.commands.items(), strict=True):
        assert section.startswith(f"{name}\n")
        words = {word.rstrip(",") for word in section.split()}
        for parameter in command.params:
            names = {*parameter.opts} - {"-v", "-q", "-h", "--verbose", "--quiet", "--help"}
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert names <= words, (name, names)
