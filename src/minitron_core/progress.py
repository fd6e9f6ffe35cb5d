"""How long operations report their progress."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """A stage has done `done` of `total` units.

    detail: what it works on now. note: a line for the user.
    """

    stage: str
    done: float
    total: float
    unit: str = ""
    detail: str = ""
    note: str = ""


Progress = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Do nothing with an event: for callers without a progress display."""
