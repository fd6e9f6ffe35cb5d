"""The totals of a stage: what is done, how fast, and when it ends, from work that is done."""

from typing import Any

from minitron_cli.units import show_size, show_time
from minitron_core.progress import Event

# before so much time and so much of the work an estimate says more about the first piece
_ESTIMATE_SECONDS = 2.0
_ESTIMATE_SHARE = 0.01
_BAR = 20


class Totals:
    """A stage that began at `started`, in seconds of a monotonic clock.

    The speed counts from the first event on: what an earlier run had done took no time of this one.
    """

    def __init__(self, event: Event, started: float, now: float) -> None:
        self.event = event
        self.started = started
        self._first, self._first_at = event.done, now

    @property
    def share(self) -> float:
        """How much of the work is done, from 0 to 1."""
        return min(self.event.done / self.event.total, 1.0) if self.event.total else 0.0

    def speed(self, now: float) -> float | None:
        """Units per second; None before there is enough to tell."""
        done, seconds = self.event.done - self._first, now - self._first_at
        enough = seconds >= _ESTIMATE_SECONDS and done >= _ESTIMATE_SHARE * self.event.total
        return done / seconds if enough and done > 0 else None

    def seconds_left(self, now: float) -> float | None:
        """Seconds to the end at this speed."""
        speed = self.speed(now)
        return None if speed is None else max(self.event.total - self.event.done, 0) / speed

    def line(self, now: float, bar: bool = False) -> str:
        """The totals as one line."""
        left, speed = self.seconds_left(now), self.speed(now)
        filled = round(_BAR * self.share)
        parts = [
            f"{self.event.stage} {'━' * filled + '─' * (_BAR - filled)} {self.share:.0%}"
            if bar
            else f"{self.event.stage}: {self.share:.0%}",
            _count(self.event),
            show_time(now - self.started),
        ]
        if left is not None and speed is not None:
            parts += [f"{show_time(left)} left", _rate(speed, self.event.unit)]
        return " · ".join(parts)

    def document(self, now: float) -> dict[str, Any]:
        """The totals for programs."""
        left, speed = self.seconds_left(now), self.speed(now)
        return {
            "stage": self.event.stage,
            "done": self.event.done,
            "total": self.event.total,
            "unit": self.event.unit,
            "detail": self.event.detail,
            "elapsed_s": round(now - self.started, 2),
            "left_s": None if left is None else round(left, 2),
            "per_second": speed,
        }

    def result(self, now: float) -> str:
        """What the stage did, once it is over."""
        took = show_time(now - self.started)
        return f"{self.event.stage}: {_amount(self.event.done, self.event.unit)} in {took}"


def _count(event: Event) -> str:
    if event.unit == "bytes":
        return f"{show_size(event.done)} of {show_size(event.total)}"
    if event.unit == "weights":
        return f"{event.done / 1e6:.0f} of {event.total / 1e6:.0f} million weights"
    return f"{int(event.done)} of {int(event.total)} {event.unit}".rstrip()


def _amount(number: float, unit: str) -> str:
    if unit == "bytes":
        return show_size(number)
    if unit == "weights":
        return f"{number / 1e6:.1f} million weights"
    return f"{number:.0f} {unit}".rstrip()


def _rate(speed: float, unit: str) -> str:
    if unit not in ("bytes", "weights") and speed < 1:
        return f"{show_time(1 / speed)} each"
    if unit not in ("bytes", "weights"):
        return f"{speed:.1f} {unit}/s"
    return f"{_amount(speed, unit)}/s"
