"""Which file to choose, by measurements alone."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from minitron_cli.units import show_size

# what people ask for, as the accuracy or divergence that a file must keep to
_GOALS = (
    ("hard to tell from the full model", 99.9, 0.002),
    ("close to the full model", 99.0, 0.02),
    ("when memory is short", 95.0, 0.1),
)


class Measured(Protocol):
    """A file of a table."""

    @property
    def name(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def row(self) -> dict[str, Any] | None: ...


def advice_lines(files: Sequence[Measured], report: dict[str, Any]) -> str:
    """Markdown: the smallest file for each goal, and the files that others beat."""
    reference = report.get("reference")
    rows = [file for file in files if file.row is not None and file.name != reference]
    if not rows:
        return (
            "Nothing was measured yet, so only sizes can be compared: take the largest file that "
            "fits into your memory together with the context."
        )
    by_divergence = all(_value(file, "kld_mean") is not None for file in rows)
    lines = _goals(rows, by_divergence)
    beaten = _beaten(rows)
    if beaten:
        lines.append("- Not worth their size here: " + "; ".join(beaten) + ".")
    return "\n".join(lines)


def usual_file(files: Sequence[Measured]) -> Measured:
    """The file that examples name: Q4_K_M, or else the one in the middle by size."""
    levels = {file.level: file for file in files}
    return levels.get("Q4_K_M") or files[len(files) // 2]


def _goals(rows: Sequence[Measured], by_divergence: bool) -> list[str]:
    lines, told = [], set()
    for goal, accuracy, kld in _GOALS:
        met = [file for file in rows if _meets(file, accuracy, kld, by_divergence)]
        if not met:
            continue
        best = min(met, key=lambda file: file.bytes)
        if best.name not in told:
            told.add(best.name)
            lines.append(f"- **{goal.capitalize()}**: {_called(best)}, {_told(best)}.")
    if not lines:
        best = min(rows, key=lambda file: _value(file, "kld_mean" if by_divergence else "ppl") or 0)
        lines.append(f"- **The closest to the full model**: {_called(best)}, {_told(best)}.")
    return lines


def _meets(file: Measured, accuracy: float, kld: float, by_divergence: bool) -> bool:
    if by_divergence:
        return (_value(file, "kld_mean") or 0.0) <= kld
    kept = _value(file, "accuracy_pct")
    return kept is not None and kept >= accuracy


def _told(file: Measured) -> str:
    shown: list[tuple[str, Callable[[float], str]]] = [
        ("kld_mean", lambda value: f"a divergence of {value:.4f}"),
        ("same_top_pct", lambda value: f"the same next token {value:.1f} % of the time"),
        ("accuracy_pct", lambda value: f"accuracy {value:.2f} %"),
    ]
    told = [show(value) for key, show in shown if (value := _value(file, key)) is not None]
    return ", ".join([show_size(file.bytes), *(told or [f"perplexity {_value(file, 'ppl'):.4f}"])])


def _beaten(rows: Sequence[Measured]) -> list[str]:
    """Files beside one of at most their size, better beyond chance, as the table marks them."""
    names = {(file.row or {}).get("model"): file for file in rows}
    pairs = [(file, names.get((file.row or {}).get("dominated_by"))) for file in rows]
    return [
        f"{_called(file)} ({_called(better)} is better and no larger)"
        for file, better in pairs
        if better is not None
    ]


def _called(file: Measured) -> str:
    return file.level or file.name


def _value(file: Measured, key: str) -> float | None:
    value = (file.row or {}).get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number else None
