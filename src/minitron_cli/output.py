"""The one place that writes: results to stdout, everything else to stderr."""

import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from minitron_core import stop
from minitron_core.text_encoding import as_unicode

if TYPE_CHECKING:
    from rich.console import Console

    from minitron_cli.progress.displays import Display, ProgressFormat
    from minitron_core.progress import Progress

# json: a command prints a document instead of its tables
TableFormat = Literal["table", "md", "csv", "json"]
# off a terminal, lines are as long as they need to be
_UNLIMITED = 400
_GAP = 2  # spaces between two columns
_LONGEST_LINE = 1200


class _Steady:
    """stderr as it is now. Where it ends (a closed terminal, a full disk) the work goes on."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> int:
        try:
            return sys.stderr.write(text)
        except OSError:
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        # what is still buffered must not fail again at exit
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())


def _stderr() -> IO[str]:
    return cast("IO[str]", _Steady())


class Output:
    """How a command talks; `as_json` keeps stdout for one document.

    progress: json for one JSON object per line on stderr, none for notes only.
    """

    def __init__(
        self,
        *,
        verbose: bool = False,
        quiet: bool = False,
        as_json: bool = False,
        progress: "ProgressFormat" = "auto",
    ) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.as_json = as_json
        self._progress = progress
        if verbose:
            handler = logging.StreamHandler(_stderr())
            handler.setFormatter(logging.Formatter("%(message)s"))
            logging.getLogger("minitron").addHandler(handler)
            logging.getLogger("minitron").setLevel(logging.INFO)

    @cached_property
    def _err(self) -> "Console":
        # rich is loaded when something is printed: a quiet command starts sooner
        from rich.console import Console

        return Console(file=_stderr(), highlight=False)

    @property
    def interactive(self) -> bool:
        """Whether stderr is a terminal."""
        return sys.stderr.isatty() and self._err.is_terminal

    def note(self, text: str) -> None:
        """A note on stderr; not with --quiet."""
        if self._progress == "json":
            _print_line(json.dumps({"event": "note", "text": text}, ensure_ascii=False))
        elif not self.quiet:
            from rich.markup import escape

            lines = "\n".join(map(printable, text.split("\n")))
            self._err.print(escape(lines), style="dim", soft_wrap=True)

    def detail(self, text: str) -> None:
        """A note only on a terminal, or with --verbose."""
        if self.interactive or self.verbose:
            self.note(text)

    def error(self, message: str, hint: str = "") -> None:
        """Why it failed and what to do next, on stderr."""
        from rich.markup import escape

        self._err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
        if hint:
            self._err.print(f"[bold]hint:[/] {escape(hint)}", soft_wrap=True)

    def text(self, text: str, end: str = "\n") -> None:
        """A piece of the result, on stdout as it is."""
        sys.stdout.write(text + end)
        sys.stdout.flush()

    def document(self, document: Any) -> None:
        """The whole result as JSON; U+FFFD stands for what is not Unicode."""
        self.text(as_unicode(json.dumps(document, indent=2, ensure_ascii=False)))

    def result(self, document: Any, text: str) -> None:
        """The result: a document with --json, a text otherwise."""
        if self.as_json:
            self.document(document)
        else:
            self.text(text)

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[str]],
        table_format: TableFormat = "table",
        left: int = 1,
    ) -> None:
        """A table; the first `left` columns are aligned to the left, the others to the right."""
        rows = [[printable(cell) for cell in row] for row in rows]
        if table_format == "md":
            self.text(markdown_table(headers, rows, left), end="")
        elif table_format == "csv":
            self.text(csv_table(headers, rows), end="")
        else:
            self._print_table(headers, rows, left)

    def _print_table(
        self, headers: Sequence[str], rows: Sequence[Sequence[str]], left: int
    ) -> None:
        if _is_plain():
            self.text(plain_table(headers, rows, left), end="")
            return
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        console = Console(highlight=False)
        widths = _widths(headers, rows)
        for place, group in enumerate(column_groups(widths, left, console.width)):
            if place:
                console.print()
            table = Table(box=None, header_style="bold", pad_edge=False)
            for number in group:
                justify: Literal["left", "right"] = "left" if number < left else "right"
                table.add_column(headers[number], justify=justify, no_wrap=True)
            for row in rows:
                table.add_row(*(escape(row[number]) for number in group))
            console.print(table)

    @contextmanager
    def progress(self, again: str = "", lost: str = "") -> "Iterator[Progress]":
        """Show what a long job does while the block runs, and answer Ctrl-C at once.

        again: the option with which the same command goes on after Ctrl-C, if it needs one. lost:
        what to say where nothing is kept.
        """
        from minitron_engine.process.interrupts import watched

        with self._display() as display:
            display.patient = not self.verbose
            try:
                with watched(display.stopping, display.leave):
                    yield display.listen
            except KeyboardInterrupt as interrupt:
                display.close()
                self._say_stopped(interrupt, again, lost)
                raise

    def _display(self) -> "Display":
        from minitron_cli.progress.displays import (
            JsonDisplay,
            LineDisplay,
            NoteDisplay,
            TerminalDisplay,
        )

        if self._progress == "json":
            return JsonDisplay(_print_line)
        if self.quiet or self._progress == "none":
            return NoteDisplay(self.note)
        if self.interactive:
            return TerminalDisplay(self.note, self._err)
        return LineDisplay(self.note)

    def _say_stopped(self, interrupt: KeyboardInterrupt, again: str, lost: str) -> None:
        """What is kept, and the command that goes on, or begins again."""
        import shlex

        kept = "; ".join(stop.kept(interrupt))
        words = sys.argv[1:]
        if kept and again and again not in words:
            words.insert(words.index("--") if "--" in words else len(words), again)
        command = shlex.join(["minitron", *words])
        if self._progress == "json":
            document = {"event": "stopped", "kept": kept, "continue": command}
            _print_line(json.dumps(document, ensure_ascii=False))
        else:
            self.note(f"stopped: {kept or lost}" if kept or lost else "stopped")
            self.note(f"{'continue' if kept else 'run it again'} with: {command}")


def _print_line(line: str) -> None:
    stream = _stderr()
    stream.write(f"{line}\n")
    stream.flush()


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, numbers aligned to the right."""
    rule = [":--" if number < left else "--:" for number in range(len(headers))]
    lines = [headers, rule, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as CSV."""
    import csv

    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([headers, *rows])
    return buffer.getvalue()


def plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The same in columns, for a file or a pipe; columns that are too many stand below."""
    widths = _widths(headers, rows)
    groups = []
    for columns in column_groups(widths, left, _UNLIMITED):
        groups.append("")
        for line in [headers, *rows]:
            cells = []
            for number in columns:
                cell = line[number] if number < left else line[number].rstrip()
                space = " " * (widths[number] - _cells(cell))
                cells.append(cell + space if number < left else space + cell)
            groups[-1] += f"{(' ' * _GAP).join(cells)}\n"
    return "\n".join(groups)


def _widths(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    lines = [headers, *rows]
    return [max(_cells(line[number]) for line in lines) for number in range(len(headers))]


def _cells(text: str) -> int:
    """How many places of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _is_plain() -> bool:
    """Whether stdout takes no colours, by rich's rules."""
    forced = os.environ.get("FORCE_COLOR") or os.environ.get("TTY_COMPATIBLE") == "1"
    return not (forced or sys.stdout.isatty())


def printable(text: str) -> str:
    """The text with � for each control character that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def one_line(text: str) -> str:
    """The text as one printable line, the middle of a long one left out."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 300]} … {line[-290:]}"


def column_groups(widths: Sequence[int], left: int, room: int) -> list[list[int]]:
    """Which columns to show beside each other in `room` characters, group below group.

    The first `left` columns name a row: they stand in the first group, the very first of them in
    every group. A group holds at least one column of its own, even where that is too wide.
    """
    groups = [list(range(min(left, len(widths))))]
    used = _width(widths, groups[0])
    for number in range(len(groups[0]), len(widths)):
        group = groups[-1]
        fits = used + _GAP + widths[number] <= room
        if not fits and len(group) > (left if group is groups[0] else 1):
            groups.append([0, number])
            used = _width(widths, [0, number])
        else:
            group.append(number)
            used += _GAP + widths[number]
    return groups


def _width(widths: Sequence[int], columns: Sequence[int]) -> int:
    return sum(widths[number] for number in columns) + _GAP * max(len(columns) - 1, 0)
