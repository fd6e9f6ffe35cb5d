"""How progress is shown: two lines on a terminal, some lines in a log, JSON for a program."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from minitron_cli.progress.totals import Totals
from minitron_core.progress import Event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

ProgressFormat = Literal["auto", "json", "none"]
Say = Callable[[str], None]
STOPPING = "stopping… (Ctrl-C again ends at once)"
_QUIET_SECONDS = 2.0  # a job that takes less needs no progress
_LINE_SECONDS = 60.0
_JSON_SECONDS = 0.5
_TICK = 0.25
_open: list["Display"] = []


class Display:
    """Follows the events of a job; `say` prints a line for people, `clock` is in seconds.

    patient: nothing but notes in a job's first two seconds.
    """

    patient = True

    def __init__(self, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._began = self._stage_began = clock()
        self._totals: Totals | None = None
        self._told = False  # whether the stage has left a line already
        self._held: list[str] = []
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> "Display":
        _open.append(self)
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Show nothing any more; what is on the terminal for a while goes."""
        self._closed.set()
        if self in _open:
            _open.remove(self)

    def listen(self, event: Event) -> None:
        """Take an event of the work."""
        with self._lock:
            if event.note:
                self._say(event.note)
            if event.finished:
                self._told = True
                self._leave_line(event.finished)
            if event.total:
                self._follow(event)
            self.advance()

    def _follow(self, event: Event) -> None:
        now = self._clock()
        if self._totals is not None and self._totals.event.stage == event.stage:
            self._totals.event = event
            return
        if self._totals is not None:
            long = now - self._totals.started >= _QUIET_SECONDS
            if long and not self._told:
                self._leave_line(self._totals.result(now))
            self._stage_began = now
        self._told = False
        self._totals = Totals(event, self._stage_began, now)
        self.begin_stage()

    def _leave_line(self, line: str) -> None:
        """A line that stays; those of a job's first seconds wait until it is a long one."""
        self._held.append(line)

    def _is_long(self) -> bool:
        return not self.patient or self._clock() - self._began >= _QUIET_SECONDS

    def _tick(self) -> None:
        while not self._closed.wait(_TICK):
            with self._lock:
                self.advance()

    def advance(self) -> None:
        """Say what is due now: after every event, and four times a second until it is closed."""
        if self._closed.is_set():
            return
        if self._is_long():
            for line in self._held:
                self._say(line)
            self._held.clear()
        self.show()

    def begin_stage(self) -> None:
        """Another stage has begun."""

    def show(self) -> None:
        """Show the totals if it is time."""

    def stopping(self) -> None:
        """Answer Ctrl-C; called from another thread."""
        self._say(STOPPING)

    def leave(self) -> None:
        """End the process at once, at the second Ctrl-C; from another thread."""
        os._exit(130)


class NoteDisplay(Display):
    """Nothing but notes, and the answer to Ctrl-C."""

    def _leave_line(self, line: str) -> None:
        pass


class LineDisplay(Display):
    """Off a terminal: a line when a stage begins, every minute, and for what is finished."""

    _due = 0.0

    def begin_stage(self) -> None:
        """See Display."""
        self._due = max(self._began, self._stage_began) + _QUIET_SECONDS

    def show(self) -> None:
        """See Display."""
        now = self._clock()
        if self._totals is not None and now >= self._due:
            self._due = now + _LINE_SECONDS
            self._say(self._totals.line(now))


class JsonDisplay(Display):
    """For programs: JSON lines, for a stage at most two a second."""

    _due = 0.0
    _last: Event | None = None

    def __init__(self, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(lambda text: say(_json("note", text=text)), clock)
        self._print = say

    def _leave_line(self, line: str) -> None:
        self._print(_json("finished", text=line))

    def begin_stage(self) -> None:
        """See Display."""
        self._due = 0.0

    def show(self) -> None:
        """See Display."""
        totals, now = self._totals, self._clock()
        if totals is None or totals.event is self._last:
            return
        if now >= self._due or totals.share == 1:
            self._due, self._last = now + _JSON_SECONDS, totals.event
            self._print(_json("progress", **totals.document(now)))

    def stopping(self) -> None:
        """See Display."""
        self._print(_json("stopping"))


class TerminalDisplay(Display):
    """A line of totals and one for what is at work, redrawn in place and gone at the end."""

    def __init__(
        self, say: Say, console: "Console", clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(say, clock)
        self._console = console
        self._live: Live | None = None
        self._stopping = False

    def show(self) -> None:
        """See Display. The first time it begins to draw, which then goes on by itself."""
        if self._live is None and self._totals is not None and self._is_long():
            from rich.live import Live

            self._live = Live(self, console=self._console, transient=True, refresh_per_second=4)
            self._live.start()

    def __rich__(self) -> "Text":
        from rich.text import Text

        totals = self._totals
        assert totals is not None
        detail = STOPPING if self._stopping else totals.event.detail
        text = Text(totals.line(self._clock(), bar=True), no_wrap=True, overflow="ellipsis")
        return text.append(f"\n  {detail}", style="dim")

    def stopping(self) -> None:
        """See Display."""
        self._stopping = True
        if self._live is None:
            self._say(STOPPING)
        else:
            self._live.refresh()

    def leave(self) -> None:
        """See Display. No lock is taken: the main thread may hold it."""
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # shows the cursor
        super().leave()

    def close(self) -> None:
        """See Display."""
        super().close()
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None


def close_displays() -> None:
    """Clear the terminal, for an exit that skips the end of `Output.progress`."""
    for display in _open[:]:
        display.close()


def _json(event: str, **more: Any) -> str:
    return json.dumps({"event": event, **more}, ensure_ascii=False)
