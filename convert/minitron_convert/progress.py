"""What a long operation tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """`done` of `total` `unit`s of a stage are finished; `detail` names the thing at hand."""

    stage: str
    done: int
    total: int
    unit: str
    detail: str = ""


Progress = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The progress of those who do not listen."""
