"""Tables on terminals of any width, and in pipes."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minitron_cli.output import column_groups, plain_table

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


@given(
    st.lists(
        st.lists(st.text("ab [/]é日", max_size=6), min_size=3, max_size=3), min_size=1, max_size=4
    ),
    st.integers(1, 3),
)
def test_plain_table_is_what_rich_prints(rows: list[list[str]], left: int) -> None:
    headers = ["Level", "MiB", "File"]
    console = Console(file=io.StringIO(), highlight=False, width=400)
    table = Table(box=None, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    assert plain_table(headers, rows, left) == console.file.getvalue()
