"""Text out of files from strangers, as it may be shown."""

_LONGEST = 1200


def printable(text: str) -> str:
    """The text without what a terminal would obey: � for each such character."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def one_line(text: str) -> str:
    """The text as one printable line, the middle of a long one left out."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 300]} … {line[-290:]}"
