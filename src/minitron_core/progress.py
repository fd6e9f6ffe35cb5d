"""How long operations report their progress."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """A stage has done `done` of `total` units; without a total only the texts count.

    detail: what it works on now. note: a line for the user. finished: a level, a model or a stage
    that is complete, with its result, as one line.
    """

    stage: str
    done: float = 0
    total: float = 0
    unit: str = ""
    detail: str = ""
    note: str = ""
    finished: str = ""


Progress = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Do nothing with an event: for callers without a progress display."""
