"""What a long job says while it works: on a terminal, in a log, to a program."""

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from minitron_cli.progress.displays import JsonDisplay, LineDisplay, TerminalDisplay
from minitron_cli.progress.totals import Totals
from minitron_core.progress import Event


class Clock:
    """Seconds that a test moves on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def chunks(done: float, total: float = 100, stage: str = "imatrix") -> Event:
    return Event(stage, done, total, "chunks", f"chunk {done:.0f}")


def test_totals_estimate_from_the_work_of_this_run() -> None:
    # an earlier run had done 40, and the first chunk took 20 s to load the model
    totals = Totals(chunks(41), started=0, now=20)
    assert totals.speed(21) is None and "left" not in totals.line(21)
    totals.event = chunks(51)
    assert totals.speed(30) == 1
    assert totals.line(30) == "imatrix: 51% · 51 of 100 chunks · 30 s · 49 s left · 1.0 chunks/s"


def test_totals_count_in_units_that_people_read() -> None:
    def line(event: Event, before: Event) -> str:
        totals = Totals(before, 0, 0)
        totals.event = event
        return totals.line(10)

    weights = line(Event("quantize", 3e8, 6e8, "weights"), Event("quantize", 0, 6e8, "weights"))
    assert weights.startswith("quantize: 50% · 300 of 600 million weights · 10 s · 10 s left")
    assert weights.endswith("30.0 million weights/s")
    sizes = line(Event("convert", 1 << 20, 2 << 20, "bytes"), Event("convert", 0, 1, "bytes"))
    assert "1.00 MiB of 2.00 MiB" in sizes and sizes.endswith("0.10 MiB/s")
    assert line(chunks(2), chunks(0)).endswith("5 s each")


def test_line_display_is_quiet_for_two_seconds_then_speaks_once_a_minute() -> None:
    clock, lines = Clock(), list[str]()
    display = LineDisplay(lines.append, clock)
    display.listen(chunks(1))
    display.listen(Event("imatrix", finished="a file"))
    clock.now += 1.9
    display.listen(chunks(2))
    assert lines == []
    for _ in range(120):
        clock.now += 1
        display.advance()
    starts = [line.split(" · ")[0] for line in lines]
    assert starts == ["a file", "imatrix: 2%", "imatrix: 2%"]
    display.listen(Event("imatrix", finished="another"))
    assert lines[3:] == ["another"]


def test_line_display_leaves_a_line_for_each_stage() -> None:
    clock, lines = Clock(), list[str]()
    display = LineDisplay(lines.append, clock)
    display.listen(chunks(1, 4, "costs"))
    clock.now += 30
    display.listen(chunks(4, 4, "costs"))
    display.listen(chunks(0, 4, "sensitivity"))
    clock.now += 1
    display.listen(chunks(1, 4, "sensitivity"))
    assert [line.partition(" ·")[0] for line in lines] == ["costs: 100%", "costs: 4 chunks in 30 s"]


def test_json_display_writes_events_that_programs_read() -> None:
    clock, lines = Clock(), list[str]()
    display = JsonDisplay(lines.append, clock)
    for done in range(101):
        clock.now += 0.1
        display.listen(chunks(done))
    display.listen(Event("imatrix", finished="done", note="a note"))
    display.stopping()
    documents = [json.loads(line) for line in lines]
    *shown, note, finished, stopping = documents
    assert all(each["event"] == "progress" for each in shown) and 15 <= len(shown) <= 23
    first, last = shown[0], shown[-1]
    assert (first["done"], first["total"], first["unit"], first["left_s"]) == (
        0,
        100,
        "chunks",
        None,
    )
    assert (last["done"], last["left_s"], round(last["per_second"], 3)) == (100, 0, 10)
    assert note == {"event": "note", "text": "a note"}
    assert finished == {"event": "finished", "text": "done"}
    assert stopping == {"event": "stopping"}


def test_terminal_display_draws_two_lines_and_takes_them_back() -> None:
    clock, screen = Clock(), io.StringIO()
    console = Console(file=screen, force_terminal=True, width=90, _environ={})
    with TerminalDisplay(console.print, console, clock) as display:
        display.listen(chunks(1))
        assert screen.getvalue() == ""
        clock.now += 3
        display.listen(chunks(50))
        rows = console.render_lines(display)  # type: ignore[arg-type]
        drawn = "\n".join("".join(part.text for part in row).rstrip() for row in rows)
        assert drawn == (
            "imatrix ━━━━━━━━━━────────── 50% · 50 of 100 chunks · 3 s · 3 s left · 16.3 chunks/s\n"
            "  chunk 50"
        )
        display.stopping()
    shown = screen.getvalue()
    assert "stopping…" in shown
    assert shown.endswith("\x1b[2K") and "\x1b[?25h" in shown, "cleared, with a cursor"
    display.listen(chunks(60))  # from a thread that was still at work
    assert screen.getvalue() == shown


def test_progress_json_of_a_command_is_lines_of_json(
    minitron: Any, short_llama: Path, tmp_path: Path
) -> None:
    ran = minitron("quantize", short_llama, "Q4_0", "-d", tmp_path, "--progress", "json")
    events = [json.loads(line) for line in ran.err.splitlines()]
    assert ran.code == 0 and "Q4_0" in ran.out
    assert {event["event"] for event in events} == {"progress", "finished"}
    assert events[-1]["text"].startswith("Q4_0: ")
    assert minitron("quantize", short_llama, "Q4_0", "-d", tmp_path).err == (
        "1 of 1 files were there already and up to date\n"
    )
