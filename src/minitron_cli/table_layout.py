"""Wide tables on narrow terminals: columns that do not fit come below, and no number is cut."""

from collections.abc import Sequence

# spaces between two columns
GAP = 2


def column_groups(widths: Sequence[int], left: int, room: int) -> list[list[int]]:
    """Which columns to show beside each other in `room` characters, group below group.

    The first `left` columns name a row: they stand in the first group, the very first of them in
    every group. A group holds at least one column of its own, even where that is too wide.
    """
    groups = [list(range(min(left, len(widths))))]
    used = _width(widths, groups[0])
    for number in range(len(groups[0]), len(widths)):
        group = groups[-1]
        fits = used + GAP + widths[number] <= room
        if not fits and len(group) > (left if group is groups[0] else 1):
            groups.append([0, number])
            used = _width(widths, [0, number])
        else:
            group.append(number)
            used += GAP + widths[number]
    return groups


def _width(widths: Sequence[int], columns: Sequence[int]) -> int:
    return sum(widths[number] for number in columns) + GAP * max(len(columns) - 1, 0)
