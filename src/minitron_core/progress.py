"""How long work reports that it advances."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """A stage has `done` of `total` units; detail: the thing in work; note: what to read."""

    stage: str
    done: float
    total: float
    unit: str = ""
    detail: str = ""
    note: str = ""


Progress = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """The listener of callers that want none."""
