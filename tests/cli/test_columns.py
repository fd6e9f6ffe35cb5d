"""Tables on terminals of any width."""

from hypothesis import given
from hypothesis import strategies as st

from minitron_cli.output import column_groups

GAP = 2


def test_column_groups_repeats_the_name_below() -> None:
    assert column_groups([6, 4, 4, 4], 1, 100) == [[0, 1, 2, 3]]
    assert column_groups([6, 4, 4, 4], 1, 18) == [[0, 1, 2], [0, 3]]
    assert column_groups([6, 40, 4], 1, 18) == [[0, 1], [0, 2]]
    # all columns that name a row stand in the first group
    assert column_groups([6, 6, 4, 4], 2, 20) == [[0, 1, 2], [0, 3]]
    assert column_groups([30, 30], 2, 20) == [[0, 1]]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 3), st.integers(1, 140)
)
def test_column_groups_shows_every_column_once(widths: list[int], left: int, room: int) -> None:
    left = min(left, len(widths))
    groups = column_groups(widths, left, room)
    shown = groups[0] + [number for group in groups[1:] for number in group[1:]]
    assert shown == list(range(len(widths)))
    for place, group in enumerate(groups):
        assert place == 0 or group[0] == 0
        least = left + 1 if place == 0 else 2
        width = sum(widths[number] for number in group) + GAP * (len(group) - 1)
        assert width <= room or len(group) <= least
