"""Texts of other programs: byte order marks, and what is not Unicode."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_core.text_encoding import as_unicode, as_utf8


@given(st.text())
def test_as_utf8_drops_one_mark(text: str) -> None:
    assert as_utf8(codecs.BOM_UTF8 + text.encode()) == text.encode()


@given(st.text())
@pytest.mark.parametrize("order", ["le", "be"])
def test_as_utf8_reads_utf16_by_its_mark(order: str, text: str) -> None:
    mark = codecs.BOM_UTF16_LE if order == "le" else codecs.BOM_UTF16_BE
    assert as_utf8(mark + text.encode(f"utf-16-{order}")) == text.encode()


@given(st.text())
def test_as_utf8_keeps_texts_without_a_mark(text: str) -> None:
    marked = text.startswith("\ufeff")
    assert as_utf8(text.encode()) == text[marked:].encode()


@given(st.binary())
def test_as_unicode_leaves_nothing_that_cannot_be_written(data: bytes) -> None:
    text = as_unicode(data.decode(errors="surrogateescape") + "\ud800")
    assert text.encode() and text.endswith("\ufffd")
