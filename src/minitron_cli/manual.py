"""docs/cli.md: every command with its options, from the same words as --help. Also the table of
keys in docs/job-files.md.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from minitron_cli.main import OUTPUT_RULE, WRITING, app
from minitron_cli.options.llama_names import MODEL_NAMES, NAMES, PROMPT_NAMES
from minitron_cli.pipeline.job_keys import keys_table

PATH = Path("docs", "cli.md")
JOB_PATH = Path("docs", "job-files.md")
_BEGIN, _END = "<!-- make manual writes this table -->", "<!-- until here -->"
_INTRODUCTION = """# Command line reference

`make manual` writes this page from the texts of `--help`.
Every command also takes `-v`/`--verbose`, `-q`/`--quiet` and `--help`.

Files that {writing} write: {rule}"""
_NAMES = """## llama.cpp's names

Every command that has the option takes these names for it, too; `--help` does not list them.

| llama.cpp | minitron |
|---|---|"""
_KINDS = {"int": "N", "int range": "N", "float": "X", "float range": "X", "path": "FILE"}
_WIDTH = 34
_MARGIN = " " * (_WIDTH + 3)
# the options of every command, which the introduction names
_COMMON = {"--help", "--verbose", "--quiet"}


def manual() -> str:
    """The page: a contents line, then a section for every command."""
    group: Any = typer.main.get_command(app)
    contents = " · ".join(f"[{name}](#minitron-{name})" for name in group.commands)
    parts = [_section(name, command) for name, command in group.commands.items()]
    return "\n\n".join([_introduction(), contents, *parts, _llama_names()]) + "\n"


def _introduction() -> str:
    rule = OUTPUT_RULE[0].lower() + OUTPUT_RULE[1:]
    return _INTRODUCTION.format(writing=", ".join(f"`{name}`" for name in WRITING), rule=rule)


def _llama_names() -> str:
    """The table of llama.cpp's names that stand for options and arguments here."""
    places = {"MODEL": MODEL_NAMES, "PROMPT": PROMPT_NAMES}
    ours = {name: [each for each in NAMES if NAMES[each] == name] for name in NAMES.values()}
    rows = [
        f"| {', '.join(f'`{name}`' for name in names)} | `{place}` |"
        for place, names in (places | dict(sorted(ours.items()))).items()
    ]
    return "\n".join([_NAMES, *rows])


def _section(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [
        each
        for each in command.params
        if each.param_type_name == "option" and not _COMMON & set(each.opts) and not each.hidden
    ]
    usage = " ".join(["minitron", name, *map(_placeholder, arguments), "[OPTIONS]"])
    summary = inspect.cleandoc(command.help or "").splitlines()[0]
    parts = ["\n".join([usage, *([""] if arguments else []), *_entries(arguments)])]
    for panel, members in _panels(options).items():
        parts.append("\n".join([*([f"{panel}:"] if panel else []), *_entries(members)]))
    listing = "\n\n".join(parts)
    return f"## minitron {name}\n\n{summary}\n\n```text\n{listing}\n```"


def _panels(options: list[Any]) -> dict[str, list[Any]]:
    """The options by the panel of --help that they are in; first those in none."""
    found: dict[str, list[Any]] = {"": []}
    for option in options:
        found.setdefault(option.rich_help_panel or "", []).append(option)
    return {panel: members for panel, members in found.items() if members}


def _placeholder(argument: Any) -> str:
    shown = argument.metavar or argument.name.upper()
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _entries(parameters: list[Any]) -> Iterator[str]:
    for each in parameters:
        if each.param_type_name == "argument":
            names = _placeholder(each)
        else:
            value = "" if each.is_flag else f" {each.metavar or _value(each)}"
            names = ", ".join([*sorted(each.opts, key=len), *each.secondary_opts]) + value
        words = " ".join((each.help or "").split())
        if each.default not in (None, False, (), "") and not each.required:
            words += f" [default: {each.default}]"
        yield (
            f"  {names:<{_WIDTH}} {words}"
            if len(names) <= _WIDTH
            else f"  {names}\n{_MARGIN}{words}"
        )


def _value(parameter: Any) -> str:
    """What stands for an option's value: its choices, or the kind of value."""
    kind = parameter.type
    return "|".join(kind.choices) if kind.name == "choice" else _KINDS.get(kind.name, "TEXT")


def job_page(text: str) -> str:
    """docs/job-files.md with the table of keys between its marks brought up to date."""
    before, _, rest = text.partition(_BEGIN)
    return f"{before}{_BEGIN}\n\n{keys_table()}\n\n{_END}{rest.partition(_END)[2]}"


if __name__ == "__main__":
    PATH.write_text(manual(), encoding="utf-8")
    JOB_PATH.write_text(job_page(JOB_PATH.read_text(encoding="utf-8")), encoding="utf-8")
