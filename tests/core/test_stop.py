"""A request to stop, and what an interrupt says of the work that is kept."""

import pytest

from minitron_core import stop


def test_check_raises_until_the_request_is_taken_back() -> None:
    stop.check()
    stop.request()
    try:
        with pytest.raises(KeyboardInterrupt):
            stop.check()
    finally:
        stop.clear()
    stop.check()


def test_kept_tells_what_all_blocks_keep_also_of_an_interrupt_before() -> None:
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        stop.keeping(lambda: "outer"),
        stop.keeping(lambda: "second"),
    ):
        try:
            with stop.keeping(lambda: "first"):
                raise KeyboardInterrupt
        finally:
            raise KeyboardInterrupt
    assert stop.kept(caught.value) == ["second", "outer", "first"]


def test_keeping_says_nothing_of_other_errors() -> None:
    with pytest.raises(ValueError) as caught, stop.keeping(lambda: "kept"):
        raise ValueError
    assert stop.kept(caught.value) == []
