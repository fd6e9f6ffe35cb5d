"""Every command of README.md and docs/ works as it stands there.

A shell block runs, page by page, in a folder with small models. What cannot run says why in a word
after the block's language (see MARKS); then its commands are checked for names, options and values.
"""

import importlib.util
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from helpers.markdown import Block, blocks, pages
from helpers.support import ROOT
from minitron_cli.main import app

MARKS = {
    "gpu": "needs several GPUs",
    "hub": "downloads",
    "install": "needs packages that are not part of the tests",
    "make": "installs everything",
    "server": "does not end by itself, or needs another machine",
}
BLOCKS = [block for page in pages() for block in blocks(page)]
_GLOB = re.compile(r"[*?]")
# has an exit code of 1 where the machine has a problem
_MAY_FAIL = ("doctor",)


def shell_blocks(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "sh"]


def test_blocks_have_a_language_and_known_marks() -> None:
    assert {block.language for block in BLOCKS} <= {"", "sh", "toml", "python"}
    assert {block.mark for block in BLOCKS} <= {None, *MARKS}


# what README.md shows runs in test_five_goals
@pytest.mark.parametrize("page", pages()[1:], ids=lambda page: page.stem)
def test_pages_commands_run(page: Path, workshop: Path, minitron: Any) -> None:
    for block in shell_blocks(page):
        for command in block.commands() if block.mark is None else ():
            words, stdin = split_pipe(command)
            assert words[0] == "minitron", f"{block}: mark what is not a command of minitron"
            ran = minitron(*expand(words[1:]), stdin=stdin)
            allowed = (0, 1) if words[1] in _MAY_FAIL else (0,)
            assert ran.code in allowed, f"{block}: {command}\n{ran.err}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.mark], ids=str)
def test_marked_commands_are_known(block: Block) -> None:
    for command in block.commands():
        words = shlex.split(command, comments=True)
        while "=" in words[0]:  # an environment variable
            words.pop(0)
        CHECKS[words[0]](words[1:])


def test_every_command_is_in_a_block() -> None:
    told = {
        words[position + 1]
        for block in BLOCKS
        if block.language == "sh"
        for words in map(shlex.split, block.commands())
        for position, word in enumerate(words[:-1])
        if word == "minitron"
    }
    group: Any = typer.main.get_command(app)
    assert set(group.commands) <= told


def split_pipe(command: str) -> tuple[list[str], str]:
    """The words of a command, and what the echo or printf before it writes."""
    words = shlex.split(command, comments=True)
    if "|" not in words:
        return words, ""
    bar = words.index("|")
    assert words[0] in ("echo", "printf")
    written = subprocess.run(words[:bar], check=True, capture_output=True, text=True).stdout
    return words[bar + 1 :], written


def expand(words: list[str]) -> Iterator[str]:
    for word in words:
        found = sorted(map(str, Path().glob(word))) if _GLOB.search(word) else []
        yield from found or [word]


def check_minitron(words: list[str]) -> None:
    """The command takes these options and values; nothing runs."""
    group: Any = typer.main.get_command(app)
    group.commands[words[0]].make_context(words[0], words[1:])


def check_curl(words: list[str]) -> None:
    """The server has the path, and the body is a JSON object."""
    from minitron_cli.server.app import make_app

    service: Any = SimpleNamespace(origins=(), api_key="", metrics=None)
    routes = {getattr(route, "path", None) for route in make_app(service, "0.0.0.0").routes}
    url = next(word for word in words if word.startswith("http"))
    assert "/" + url.split("/", 3)[3] in routes
    assert isinstance(json.loads(words[words.index("-d") + 1]), dict)


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    target, *settings = words
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for name in (setting.partition("=")[0] for setting in settings):
        assert f"$({name})" in makefile


def check_pip(words: list[str]) -> None:
    """What is installed is this package with extras that it has, or the pinned llama.cpp."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words.pop(0) == "install"
    (wanted,) = (word for word in words if re.match(r"minitron|llama", word))
    extra = re.fullmatch(r"minitron(?:\[(\w+)\])?( @ git\+REPOSITORY)?", wanted)
    assert extra is not None or wanted in project["dependencies"]
    assert extra is None or extra[1] is None or extra[1] in project["optional-dependencies"]


def check_uv(words: list[str]) -> None:
    assert words.pop(0) == "tool"
    check_pip(words)


def check_docker(words: list[str]) -> None:
    """The stage is in the Dockerfile, and minitron takes the command."""
    if words[0] == "build":
        stage = words[words.index("--target") + 1]
        assert f" AS {stage}\n" in (ROOT / "Dockerfile").read_text()
    else:
        image = next(place for place, word in enumerate(words) if word.startswith("minitron"))
        check_minitron(words[image + 1 :])


def check_python(words: list[str]) -> None:
    assert words[0] == "-m" and importlib.util.find_spec(words[1]) is not None


def check_source(words: list[str]) -> None:
    assert words == [".venv/bin/activate"]


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "minitron": check_minitron,
    "curl": check_curl,
    "make": check_make,
    "pip": check_pip,
    "pipx": check_pip,
    "uv": check_uv,
    "docker": check_docker,
    "python": check_python,
    "source": check_source,
}
