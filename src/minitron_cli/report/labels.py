"""Where the names of a figure's points go, so that none covers another name or a point."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Place = tuple[float, float]
# tried nearest first; to the right and up before to the left and down
_DISTANCES = (7, 13, 21, 31, 43, 57, 73, 91, 111)
_DEGREES = (-30, 0, 30, -60, 150, 180, 210, 60, -90, 90, -120, 120, -45, 15, -15, 135, 165)
_ANGLES = tuple(map(math.radians, _DEGREES))
_GAP = 2.0
# from this distance on a line leads from the point to its name
_LEADER = 15.0
_TRIES = 12


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box", gap: float = 0.0) -> bool:
        """Whether two boxes are closer than `gap`."""
        return (
            self.left < other.right + gap
            and other.left < self.right + gap
            and self.top < other.bottom + gap
            and other.top < self.bottom + gap
        )

    def contains(self, other: "Box") -> bool:
        """Whether another box lies inside."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )

    def nearest(self, point: Place) -> Place:
        """The place of the box that is nearest to a point."""
        return (
            min(max(point[0], self.left), self.right),
            min(max(point[1], self.top), self.bottom),
        )

    def crossed(self, line: tuple[Place, Place]) -> bool:
        """Whether a line passes through (Liang and Barsky, 1984)."""
        (x, y), (to_x, to_y) = line
        enter, leave = 0.0, 1.0
        for start, step, low, high in (
            (x, to_x - x, self.left, self.right),
            (y, to_y - y, self.top, self.bottom),
        ):
            if step == 0:
                if not low < start < high:
                    return False
                continue
            near, far = sorted(((low - start) / step, (high - start) / step))
            enter, leave = max(enter, near), min(leave, far)
        return enter < leave


@dataclass(frozen=True)
class Label:
    """A name's box, and the line that leads to it where it is not close to its point."""

    box: Box
    leader: tuple[Place, Place] | None


def place_labels(
    points: Sequence[Place],
    widths: Sequence[float],
    height: float,
    area: Box,
    lines: Sequence[tuple[Place, Place]] = (),
    radius: float = 4.0,
) -> list[Label | None]:
    """A place for the name of every point, those first in order of preference; None: no room.

    Names keep clear of each other, of all points, and, where there is room, of `lines`. Those that
    found none go first in the next try; the try that places the most counts.
    """
    dots = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    fitting = [
        [each for each in _candidates(*point, height) if area.contains(each.box)]
        for point in zip(points, widths, strict=True)
    ]
    fitting = [
        _clear_of_lines([each for each in some if _is_clear(each, point, dots)], lines)
        for some, point in zip(fitting, points, strict=True)
    ]
    order = list(range(len(points)))
    best: dict[int, Label] = {}
    for _ in range(_TRIES):
        placed = _placed(order, fitting)
        best = placed if len(placed) > len(best) else best
        missing = [number for number in order if number not in placed]
        if not missing:
            break
        order = [*missing, *(number for number in order if number in placed)]
    return [best.get(number) for number in range(len(points))]


def _placed(order: Sequence[int], fitting: Sequence[Sequence[Label]]) -> dict[int, Label]:
    placed: dict[int, Label] = {}
    for number in order:
        free = (each for each in fitting[number] if _is_free(each, placed.values()))
        label = next(free, None)
        if label is not None:
            placed[number] = label
    return placed


def _clear_of_lines(labels: Sequence[Label], lines: Sequence[tuple[Place, Place]]) -> list[Label]:
    """Those that cover no line before those that do."""
    return sorted(labels, key=lambda label: any(map(label.box.crossed, lines)))


def _candidates(point: Place, width: float, height: float) -> list[Label]:
    found = []
    for distance in _DISTANCES:
        for angle in _ANGLES:
            across, down = math.cos(angle), math.sin(angle)
            x = point[0] + across * (distance + width / 2)
            y = point[1] + down * (distance + height / 2)
            box = Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            end = box.nearest(point)
            far = math.dist(point, end) >= _LEADER
            found.append(Label(box, (point, end) if far else None))
    return found


def _is_clear(label: Label, point: Place, dots: Sequence[Box]) -> bool:
    """Whether a name covers no point, and its leader no other than its own."""
    if any(label.box.overlaps(dot) for dot in dots):
        return False
    others = (dot for dot in dots if dot.nearest(point) != point)
    return label.leader is None or not any(dot.crossed(label.leader) for dot in others)


def _is_free(label: Label, taken: Iterable[Label]) -> bool:
    return not any(
        label.box.overlaps(other.box, _GAP)
        or (label.leader is not None and other.box.crossed(label.leader))
        or (other.leader is not None and label.box.crossed(other.leader))
        for other in taken
    )
