"""The rows of the registry of sampling options: what all users of an option need to know of it.

`SamplingSettings` in sampling.py has the rows, one for each of its fields.
"""

from collections.abc import Callable
from dataclasses import MISSING, field, fields
from typing import Any, NamedTuple


class SamplingOption(NamedTuple):
    """A row of the registry: one setting as all users of it need it.

    low, high: the least and the greatest number allowed. flags: names on the command line, if not
    only --name; parse: makes the value from its text there. request: its name in a request to
    the server, as llama-server has it. gguf: its key below general.sampling in a model's metadata.
    sampler: the part of the chain that takes it, with the part's other rows in their order here.
    moves: away from its default it can make another token the likeliest. text: the command line
    takes a file with the value.
    """

    name: str
    type: type
    default: Any
    help: str
    low: float = 0
    high: float = 1e6
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    parse: Callable[[Any], Any] | None = None
    request: str = ""
    gguf: str = ""
    sampler: str = ""
    moves: bool = False
    text: bool = False

    @property
    def numeric(self) -> bool:
        """Whether the value is one number."""
        return self.type in (int, float)

    @property
    def many(self) -> bool:
        """Whether it is given several times, once for each element of the value."""
        return self.type is tuple and self.name != "samplers"

    @property
    def shown_default(self) -> str:
        """The default as help shows it, empty where there is nothing to show."""
        if self.numeric and self.default is not None:
            return f"{self.default:g}"
        return ";".join(self.default) if self.name == "samplers" else ""


def option_row(default: Any, help: str, **more: Any) -> Any:
    """A field of a dataclass of settings, with the rest of its row."""
    metadata = {"help": help, "type": type(default), **more}
    return field(default=default, metadata=metadata)


def sampling_options(settings: type) -> tuple[SamplingOption, ...]:
    """The rows of a class of settings, in the order of its fields."""
    return tuple(
        SamplingOption(
            **{
                "name": each.name,
                "default": None if each.default is MISSING else each.default,
                "request": each.name,
                **each.metadata,
            }
        )
        for each in fields(settings)
    )
