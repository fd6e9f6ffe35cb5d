"""Values in messages."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_core.quoting import quoted

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(VALUES)
def test_quoted_is_json_or_a_plain_text(value: object) -> None:
    text = quoted(value, 10**6)
    if isinstance(value, str) and text.startswith("'"):
        assert text == f"'{value}'" and value.isprintable() and "'" not in value
    else:
        assert json.loads(text) == value


@given(VALUES, st.integers(5, 40))
def test_quoted_cuts_what_is_long(value: object, most: int) -> None:
    assert len(quoted(value, most)) <= most + 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "null"),
        ("it's", '"it\'s"'),
        (b"raw", "'raw'"),
        (Path("a/b"), "'a/b'"),
        (np.float32(0.5), "0.5"),
        (np.array([1, 2]), "[1, 2]"),
        ({"a": {Path("b")}}, None),
    ],
)
def test_quoted_never_writes_as_python_does(value: object, text: str | None) -> None:
    assert text is None or quoted(value) == text
    assert not re.search(r"None|True|array\(|Path\(", quoted(value))
