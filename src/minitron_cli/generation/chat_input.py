"""The user's messages in a chat, read from a terminal or a pipe."""

import sys
from collections.abc import Callable, Iterator, Mapping

ReadLine = Callable[[str], str | None]
_QUOTES = '"""'


def turns(read_line: ReadLine) -> Iterator[str]:
    """Whole messages until the end of the input, without blank ones.

    A backslash at the end of a line continues it on the next; three quotes enclose several lines.
    """
    while (line := read_line("> ")) is not None:
        if line.startswith(_QUOTES):
            text = _quoted(line.removeprefix(_QUOTES), read_line)
        else:
            text = _continued(line, read_line)
        if text.strip():
            yield text


def _continued(line: str, read_line: ReadLine) -> str:
    lines = []
    while line.endswith("\\"):
        lines.append(line[:-1])
        following = read_line("… ")
        if following is None:
            return "\n".join(lines)
        line = following
    return "\n".join([*lines, line])


def _quoted(line: str, read_line: ReadLine) -> str:
    lines = []
    while not line.rstrip().endswith(_QUOTES):
        lines.append(line)
        following = read_line("… ")
        if following is None:
            return "\n".join(lines)
        line = following
    return "\n".join([*lines, line.rstrip().removesuffix(_QUOTES)])


def reader(commands: Mapping[str, str]) -> ReadLine:
    """Messages of a terminal, edited and with the commands completed, or lines of a pipe."""
    if sys.stdin.isatty():
        from minitron_cli.generation.terminal_input import (
            history_path,
            open_history,
            terminal_reader,
        )

        return terminal_reader(commands, open_history(history_path()))
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    return _next_line


def _next_line(_prompt: str) -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None
