"""Options that stand alone or with a value: --compare is --compare neighbors."""

from collections.abc import Sequence
from typing import Any

# option → the value of the option alone
_ALONE = {"--compare": "neighbors", "--gptq": "auto"}


def with_values(args: Sequence[str], params: Sequence[Any]) -> list[str]:
    """Arguments of a command in which every option of the table has its value."""
    choices = {
        name: param.type.choices for param in params for name in param.opts if name in _ALONE
    }
    found = list(args)
    for number in range(len(found) - 1, -1, -1):
        values = choices.get(found[number])
        if values and not set(found[number + 1 : number + 2]) & {*values}:
            found[number] += f"={_ALONE[found[number]]}"
    return found
