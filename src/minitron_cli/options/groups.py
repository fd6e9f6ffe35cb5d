"""Groups of options that several commands share, written once as dataclasses.

A command takes a group as one parameter; `expanded` gives typer the fields as options and hands
the command the filled-in group.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import Any, TypeVar, dataclass_transform, get_type_hints

Group = TypeVar("Group")


@dataclass_transform(frozen_default=True)
def option_group(group: type[Group]) -> type[Group]:
    """Make a class a group: a dataclass that is filled once, and never compared or printed.

    Each further method of a dataclass takes 0.1 ms to make, at every start.
    """
    return dataclass(eq=False, repr=False)(group)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every dataclass among its parameters replaced by options for its fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        found = groups.get(parameter.name)
        parameters += (
            [parameter.replace(annotation=hints[parameter.name], kind=_BY_NAME)]
            if found is None
            else _options(found)
        )

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    # typer reads both, and takes time to resolve annotations, which those of a signature are
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {}
    return run


_BY_NAME = inspect.Parameter.KEYWORD_ONLY


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(field.name, _BY_NAME, default=field.default, annotation=hints[field.name])
        for field in fields(group)
    ]
