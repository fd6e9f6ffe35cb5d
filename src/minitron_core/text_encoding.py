"""Bytes and characters of texts that come from other programs."""

import re

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SURROGATES = "[\ud800-\udfff]"


def as_utf8(data: bytes) -> bytes:
    """A file's text as UTF-8 without a byte order mark; UTF-16 is known by its mark."""
    if data.startswith(_UTF16_MARKS):
        return data.decode("utf-16", errors="replace").encode()
    return data.removeprefix(_UTF8_MARK)


def as_unicode(text: str) -> str:
    """A text in which U+FFFD stands for each byte or surrogate that is not Unicode."""
    return text if text.isascii() else re.sub(_SURROGATES, "\ufffd", text)
