"""The figure of a report and a model card: what every file costs against its size, as SVG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from minitron_cli.report.labels import Box, Label, Place, place_labels
from minitron_cli.report.scale import WIDE, Kind, Scale, ranging

# colours come from the page's variables, or from those that a picture of its own carries
STYLE = """
svg.figure text { font: 11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  fill: var(--ink); }
svg.figure text.axis, svg.figure text.tick { fill: var(--faint); }
svg.figure line.grid { stroke: var(--line); }
svg.figure line.interval { stroke: var(--point); stroke-width: 1.2; opacity: .6; }
svg.figure line.leader { stroke: var(--faint); stroke-width: .7; opacity: .7; }
svg.figure path.front { fill: none; stroke: var(--accent); stroke-width: 1.4; }
svg.figure circle.dot { fill: var(--point); stroke: var(--paper); }
svg.figure .best circle.dot { fill: var(--accent); }
svg.figure .beaten circle.dot { fill: var(--paper); stroke: var(--point); stroke-width: 1.5; }
svg.figure circle.reach { fill: transparent; }
"""
_COLOURS = """
:root { --ink: #1d2329; --faint: #5c6670; --paper: #fff; --line: #d8dde3; --accent: #b8640c;
  --point: #2f6fb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --faint: #9aa5b1;
  --paper: #14181c; --line: #343b43; --accent: #e8a15c; --point: #74b0e8; } }
rect.paper { fill: var(--paper); }
"""
# of a monospaced font of 11 px: the widest of the usual ones, and the height of a line
_CHARACTER, _LINE = 6.8, 13.0
_RADIUS = 4.0


@dataclass(frozen=True)
class Point:
    """A file: its name and size in MiB, a value with its 95 % interval, what a reader may ask for.

    beaten: whether a file of at most its size is proven to be better.
    """

    name: str
    size: float
    value: float
    low: float
    high: float
    about: str = ""
    beaten: bool = False


@dataclass(frozen=True)
class Axis:
    """What the values are. unit: of an asinh scale."""

    title: str
    kind: Kind = "log"
    unit: float = 1.0


@dataclass(frozen=True)
class Shape:
    """A picture's size in pixels, its margins, and how many ticks its axes may have."""

    name: str
    width: int
    height: int
    left: int = 58
    right: int = 14
    top: int = 24
    bottom: int = 42
    ticks: tuple[int, int] = (9, 7)

    @property
    def area(self) -> Box:
        """Where points and names lie."""
        return Box(self.left, self.top, self.width - self.right, self.height - self.bottom)


WIDE_SHAPE = Shape("wide", 720, 420)
NARROW_SHAPE = Shape("narrow", 358, 430, left=48, right=8, ticks=(5, 7))


@dataclass(frozen=True)
class Figure:
    """A picture, and the names for which it had no room."""

    svg: str
    unnamed: tuple[str, ...] = field(default=())


def size_figure(
    points: Sequence[Point], axis: Axis, shape: Shape = WIDE_SHAPE, *, alone: bool = False
) -> Figure:
    """Values against size, with the line of the files that no other beats; sizes are in MiB.

    alone: a picture for other pages, with colours for light and dark of its own.
    """
    area = shape.area
    sizes = [point.size for point in points]
    across = ranging(sizes, area.left, area.right, "log" if _is_wide(sizes) else "linear")
    down = _value_scale(points, axis, area)
    front = pareto([(point.size, point.value) for point in points])
    places = [(across.place(point.size), down.place(point.value)) for point in points]
    labels = _labels(points, places, front, area)
    body = [
        *_grid(across, down, axis, shape),
        _front_line([places[number] for number in front]),
        *(_intervals(point, place, down) for point, place in zip(points, places, strict=True)),
        *(_name(point.name, label) for point, label in zip(points, labels, strict=True) if label),
        *(
            _dot(point, place, number in front)
            for number, (point, place) in enumerate(zip(points, places, strict=True))
        ),
    ]
    unnamed = [point.name for point, label in zip(points, labels, strict=True) if label is None]
    return Figure(_svg(body, axis, shape, alone), tuple(unnamed))


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points have no other one that is as small in both values and smaller in one."""
    order = sorted(range(len(points)), key=lambda number: points[number])
    chosen: list[int] = []
    for number in order:
        if not chosen or points[number][1] < points[chosen[-1]][1]:
            chosen.append(number)
    return chosen


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > WIDE * min(values)


def _value_scale(points: Sequence[Point], axis: Axis, area: Box) -> Scale:
    values = [point.value for point in points]
    ends = [end for point in points for end in (point.low, point.high)]
    if axis.kind == "log":
        # an interval that reaches zero is cut at half of the smallest value
        ends = [max(end, min(values) / 2) for end in ends]
    kind = axis.kind if axis.kind == "asinh" or _is_wide(values) else "linear"
    scale = ranging(values + ends, area.bottom, area.top, kind)
    return Scale(kind, scale.low, scale.high, scale.start, scale.end, axis.unit)


def _labels(
    points: Sequence[Point], places: Sequence[Place], front: Sequence[int], area: Box
) -> list[Label | None]:
    """Names of the files on the line first: they keep theirs where room is short."""
    order = [*front, *(number for number in range(len(points)) if number not in front)]
    placed = place_labels(
        [places[number] for number in order],
        [_CHARACTER * len(points[number].name) for number in order],
        _LINE,
        area,
        list(pairwise(places[number] for number in front)),
        _RADIUS,
    )
    found = dict(zip(order, placed, strict=True))
    return [found[number] for number in range(len(points))]


def _grid(across: Scale, down: Scale, axis: Axis, shape: Shape) -> Iterator[str]:
    area = shape.area
    for value in across.ticks(shape.ticks[0]):
        x = across.place(value)
        yield _line("grid", (x, area.top), (x, area.bottom))
        yield _text("tick", x, area.bottom + 15, f"{value:g}", "middle")
    for value in down.ticks(shape.ticks[1]):
        y = down.place(value)
        yield _line("grid", (area.left, y), (area.right, y))
        yield _text("tick", area.left - 6, y + 4, f"{value:g}", "end")
    yield _text("axis", area.right, area.bottom + 33, "MiB", "end")
    yield _text("axis", 2, 12, axis.title, "start")


def _front_line(places: Sequence[Place]) -> str:
    steps = " ".join(
        f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(places)
    )
    return f'<path class="front" d="{steps}"/>\n'


def _intervals(point: Point, place: Place, down: Scale) -> str:
    low, high = down.place(point.low), down.place(point.high)
    return _line("interval", (place[0], low), (place[0], high)) if low - high > 1 else ""


def _name(name: str, label: Label) -> str:
    box = label.box
    leader = "" if label.leader is None else _line("leader", *label.leader)
    return leader + _text("name", (box.left + box.right) / 2, box.bottom - 2.8, name, "middle")


def _dot(point: Point, place: Place, best: bool) -> str:
    kind = " beaten" if point.beaten else " best" if best else ""
    at = f'cx="{place[0]:.1f}" cy="{place[1]:.1f}"'
    return (
        f'<g class="point{kind}" tabindex="0" data-name="{escape(point.name)}">'
        f"<title>{escape(point.about or point.name)}</title>"
        f'<circle class="reach" {at} r="11"/><circle class="dot" {at} r="{_RADIUS:g}"/></g>\n'
    )


def _line(kind: str, start: Place, end: Place) -> str:
    return (
        f'<line class="{kind}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" '
        f'x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>\n'
    )


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}</text>\n"
    )


def _svg(body: Sequence[str], axis: Axis, shape: Shape, alone: bool) -> str:
    size = f'width="{shape.width}" height="{shape.height}" ' if alone else ""
    own = f'<style>{_COLOURS}{STYLE}</style>\n<rect class="paper" width="100%" height="100%"/>\n'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="figure {shape.name}" {size}'
        f'viewBox="0 0 {shape.width} {shape.height}" role="img" '
        f'aria-label="{escape(axis.title)} against size">\n'
        f"{own if alone else ''}{''.join(body)}</svg>\n"
    )
