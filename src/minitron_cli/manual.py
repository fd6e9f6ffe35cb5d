"""The manual in README.md: every command with its options, from the same words as --help."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from minitron_cli.main import app

BEGIN = "<!-- manual: written by `make manual` -->"
END = "<!-- end of the manual -->"
_KINDS = {"int": "N", "int range": "N", "float": "X", "float range": "X", "path": "FILE"}
_WIDTH = 34
_MARGIN = " " * (_WIDTH + 3)
# what every command has; said once
_COMMON = {"--help", "--verbose", "--quiet"}


def manual() -> str:
    """Markdown of all commands, one folded section each."""
    group: Any = typer.main.get_command(app)
    parts = [_section(name, command) for name, command in group.commands.items()]
    common = "Every command also takes `-v`/`--verbose`, `-q`/`--quiet` and `--help`."
    return "\n\n".join([common, *parts])


def _section(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [
        each
        for each in command.params
        if each.param_type_name == "option" and not _COMMON & set(each.opts) and not each.hidden
    ]
    usage = " ".join(["minitron", name, *map(_placeholder, arguments), "[OPTIONS]"])
    summary = inspect.cleandoc(command.help or "").splitlines()[0]
    lines = [*_entries(arguments), *_entries(options)]
    listing = "\n".join([usage, "", *lines]).rstrip()
    return (
        f"<details><summary><code>minitron {name}</code>: {summary}</summary>\n\n"
        f"```\n{listing}\n```\n</details>"
    )


def _placeholder(argument: Any) -> str:
    shown = argument.metavar or argument.name.upper()
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _entries(parameters: list[Any]) -> Iterator[str]:
    for each in parameters:
        if each.param_type_name == "argument":
            names = _placeholder(each)
        else:
            value = "" if each.is_flag else f" {each.metavar or _value(each)}"
            names = ", ".join(sorted(each.opts, key=len)) + value
        told = " ".join((each.help or "").split())
        # a list of nothing is no default worth telling
        if each.default not in (None, False, ()) and not each.required:
            told += f" [default: {each.default}]"
        yield (
            f"  {names:<{_WIDTH}} {told}" if len(names) <= _WIDTH else f"  {names}\n{_MARGIN}{told}"
        )


def _value(parameter: Any) -> str:
    """What stands for an option's value: its choices, or the kind of thing that it is."""
    kind = parameter.type
    return "|".join(kind.choices) if kind.name == "choice" else _KINDS.get(kind.name, "TEXT")


def with_manual(readme: str) -> str:
    """The README with its manual written anew. ValueError: it has no place for one."""
    start, end = readme.index(BEGIN), readme.index(END)
    return f"{readme[:start]}{BEGIN}\n\n{manual()}\n\n{readme[end:]}"


if __name__ == "__main__":
    path = Path("README.md")
    path.write_text(with_manual(path.read_text(encoding="utf-8")), encoding="utf-8")
