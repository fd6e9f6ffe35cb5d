"""The one place that writes: results to stdout, everything else to stderr."""

import csv
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

from minitron_core.progress import Event, Progress
from minitron_core.text_encoding import as_unicode

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

# json: a command prints a document instead of its tables
TableFormat = Literal["table", "md", "csv", "json"]
_shown: list["Bars"] = []  # bars that are on the terminal now, with its cursor hidden
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
    """How a command talks; `as_json` keeps stdout for one document."""

    def __init__(
        self, *, verbose: bool = False, quiet: bool = False, as_json: bool = False
    ) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.as_json = as_json
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
        if not self.quiet:
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
        from rich.cells import cell_len
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=_UNLIMITED)
        lines = [headers, *rows]
        widths = [max(cell_len(line[n]) for line in lines) for n in range(len(headers))]
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

    def _say(self, event: Event) -> None:
        if event.note:
            self.note(event.note)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Bars with the time left, one per stage, gone at the end; off a terminal only notes."""
        if self.quiet or not self.interactive:
            yield self._say
            return
        from rich.markup import escape
        from rich.progress import (
            BarColumn,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", style="dim"),
        )
        bars = Bars(*columns, console=self._err, transient=True)
        with _on_terminal(bars):
            tasks: dict[str, Any] = {}

            def listen(event: Event) -> None:
                self._say(event)
                if event.stage not in tasks:
                    tasks[event.stage] = bars.add_task(event.stage, detail="")
                bars.update(
                    tasks[event.stage],
                    completed=event.done,
                    total=event.total,
                    detail=escape(event.detail),
                )

            yield listen


@contextmanager
def _on_terminal(bars: "Bars") -> Iterator[None]:
    _shown.append(bars)
    try:
        with bars:
            yield
    finally:
        _shown.remove(bars)


def clear_terminal() -> None:
    """Remove bars and show the cursor, for an exit that skips the end of `progress`."""
    for bars in _shown:
        bars.stop()


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, numbers aligned to the right."""
    rule = [":--" if number < left else "--:" for number in range(len(headers))]
    lines = [headers, rule, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([headers, *rows])
    return buffer.getvalue()


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
