"""The manual in README.md says what --help says."""

from typing import Any

import pytest
import typer

from helpers.support import ROOT
from minitron_cli.main import app
from minitron_cli.manual import manual, with_manual


def test_the_readme_is_up_to_date() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_manual(readme) == readme, "run make manual"


def test_every_command_and_every_option_is_told() -> None:
    group: Any = typer.main.get_command(app)
    sections = manual().split("<details>")
    assert len(sections) == len(group.commands) + 1
    for section, (name, command) in zip(sections[1:], group.commands.items(), strict=True):
        assert f"<code>minitron {name}</code>" in section
        told = {word.rstrip(",") for word in section.split()}
        for parameter in command.params:
            names = {*parameter.opts} - {"-v", "-q", "-h", "--verbose", "--quiet", "--help"}
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert names <= told, (name, names)


def test_a_readme_without_a_place_for_it() -> None:
    with pytest.raises(ValueError):
        with_manual("# Minitron\n")
