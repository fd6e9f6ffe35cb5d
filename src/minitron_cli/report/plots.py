"""The report's pictures, as SVG that takes its colours of text and lines from the page."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minitron_core.errors import MinitronError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from minitron_quant.imatrix.statistics import WeightStatistics
    from minitron_quant.perplexity.measures import Row

# legible on white and on black alike
_POINT, _LINE = "#3b82c4", "#d9822b"
# matplotlib's text and lines in a colour that nothing else has, to be replaced by the page's own
_INK = "#010203"
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#888888",
    "grid.alpha": 0.25,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    ),
}
# from this ratio of the largest to the smallest value on, an axis is logarithmic
_WIDE = 3.0


def require_matplotlib() -> None:
    """Fail before the work if matplotlib is missing. MinitronError."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MinitronError(
            "an HTML report needs matplotlib for its plots",
            "pip install 'minitron[report]', or leave html out of the job's report",
        ) from error


def perplexity_against_size(rows: Sequence["Row"]) -> str:
    """Perplexity ± error of every file, and the line of those that no other one beats.

    An empty text where no file was measured.
    """
    if not rows:
        return ""
    points = [(row.size_mib, row.ppl, row.ppl_error, row.level or row.model) for row in rows]
    return _drawn("perplexity", lambda axes: _scatter(axes, points, "Perplexity"))


def divergence_against_size(rows: Sequence["Row"]) -> str:
    """The mean KL divergence from the full model; an empty text where it was not measured."""
    points = [
        (row.size_mib, row.divergence.kld_mean, row.divergence.kld_error, row.level or row.model)
        for row in rows
        if row.divergence is not None and row.divergence.kld_mean > 0
    ]
    if not points:
        return ""
    return _drawn("divergence", lambda axes: _scatter(axes, points, "KL divergence (nats)"))


def importance_by_layer(statistics: Sequence["WeightStatistics"]) -> str:
    """The mean square of the inputs of every weight: layers across, roles down."""
    from matplotlib.ticker import MaxNLocator

    layered = [row for row in statistics if row.layer is not None and row.mean > 0]
    roles = list(dict.fromkeys(_role(row.name) for row in layered))
    if not layered:
        return ""
    picture = np.full((len(roles), 1 + max(row.layer or 0 for row in layered)), np.nan)
    for row in layered:
        picture[roles.index(_role(row.name)), row.layer or 0] = np.log10(row.mean)

    def draw(axes: "Axes") -> None:
        axes.grid(False)
        image = axes.imshow(picture, aspect="auto", cmap="viridis", interpolation="nearest")
        axes.set_yticks(range(len(roles)), roles)
        axes.set_xlabel("Layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        bar = axes.figure.colorbar(image, ax=axes)
        bar.set_label("log₁₀ of the inputs' mean square")

    return _drawn("imatrix", draw)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points have no other one that is as small in both values and smaller in one."""
    order = sorted(range(len(points)), key=lambda number: points[number])
    chosen: list[int] = []
    for number in order:
        if not chosen or points[number][1] < points[chosen[-1]][1]:
            chosen.append(number)
    return chosen


def _role(name: str) -> str:
    return name.split(".", 2)[2].removesuffix(".weight")


def _scatter(axes: "Axes", points: list[tuple[float, float, float, str]], label: str) -> None:
    sizes, values, errors, names = zip(*points, strict=True)
    axes.errorbar(
        sizes, values, yerr=errors, fmt="o", color=_POINT, markersize=5, elinewidth=1, capsize=2
    )
    front = pareto(list(zip(sizes, values, strict=True)))
    axes.plot([sizes[i] for i in front], [values[i] for i in front], color=_LINE, linewidth=1.2)
    if max(values) > _WIDE * min(values):
        axes.set_yscale("log")
    if max(sizes) > _WIDE * min(sizes):
        _spread(axes)
    axes.set_xlabel("Size (MiB)")
    axes.set_ylabel(label)
    # those on the line first: they keep their names where room is short
    rest = [number for number in range(len(points)) if number not in front]
    _name(axes, [(sizes[i], values[i], names[i]) for i in front + rest])


def _spread(axes: "Axes") -> None:
    """Sizes on a logarithmic axis, still told as plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _name(axes: "Axes", points: list[tuple[float, float, str]]) -> None:
    """Names beside the points, as many as fit without covering each other."""
    # where a name lands is known only once the axes have their final place
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    taken: list[Any] = []
    for x, y, name in points:
        text = axes.annotate(
            name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, zorder=5
        )
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)


def _drawn(name: str, draw: Callable[["Axes"], None]) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # identifiers of several pictures on one page must differ, and be the same in every run
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure: Figure = Figure(figsize=(8.4, 4.6), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")
