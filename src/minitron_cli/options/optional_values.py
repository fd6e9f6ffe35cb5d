"""Options whose value may be left out, which typer does not know."""

from collections.abc import Sequence

# the values of each; the first stands for none
OPTIONAL_VALUES = {"--gptq": ("auto", "sequential", "independent")}


def with_values(args: Sequence[str]) -> list[str]:
    """Arguments in which such an option always has a value."""
    complete: list[str] = []
    for word, after in zip(args, [*args[1:], ""], strict=True):
        complete.append(word)
        values = OPTIONAL_VALUES.get(word)
        if values and after not in values:
            complete.append(values[0])
    return complete
