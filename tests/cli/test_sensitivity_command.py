"""minitron sensitivity: what it says, and how it refuses."""

import pytest

from minitron_cli.sizes import parse_time


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2 H", 7200)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0", "3d", "-1m", "1:30"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="is no time"):
        parse_time(text)
