"""Options that stand alone or with a value: --compare is --compare neighbors."""

from collections.abc import Sequence
from typing import Any

# option → (the value of the option alone, all values)
_VALUES = {
    "--compare": ("neighbors", ("neighbors", "all")),
    "--gptq": ("auto", ("auto", "two-sided", "sequential", "independent")),
}


def with_values(args: Sequence[str], params: Sequence[Any]) -> list[str]:
    """Arguments of a command in which every option of the table has its value."""
    known = {name for param in params for name in param.opts}
    found = list(args)
    for number in range(len(found) - 1, -1, -1):
        alone, values = _VALUES.get(found[number], ("", ()))
        if alone and found[number] in known and not set(found[number + 1 : number + 2]) & {*values}:
            found[number] = f"{found[number]}={alone}"
    return found
