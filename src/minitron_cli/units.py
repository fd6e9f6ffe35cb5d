"""Sizes as people write and read them."""

import re

from minitron_core.errors import Usage
from minitron_core.quoting import quoted

_UNITS = ("", "K", "M", "G", "T")
_MOST_GIGABYTES = 4096


def parse_size(text: str) -> int:
    """Bytes from 500M, 4G or 1.5G: decimal units, as llama.cpp's tools take them."""
    size = _parse(text, 1000)
    if not size:
        raise Usage(f"{quoted(text)} is not a size", "write 500M or 4G")
    return size


def parse_memory(text: str) -> int:
    """Bytes of memory, 0 included; 8G and 8GB are 8 GiB, as memory is sold, and 8 alone, too.

    Usage: a number without a unit that is too many gigabytes, and too few bytes.
    """
    size = _parse(text, 1024)
    bare = text.strip().replace(".", "").isdecimal()
    if bare and float(text) <= _MOST_GIGABYTES:
        return int(float(text) * 1024**3)
    if bare and size < 1024**2:
        raise Usage(f"{text} is neither gigabytes nor bytes of memory", f"write {text}M or 8G")
    return size


def _parse(text: str, unit: int) -> int:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)I?B?", text.strip().upper())
    if match is None:
        raise Usage(f"{quoted(text)} is not a size", "write 500M or 4G")
    return int(float(match[1]) * unit ** _UNITS.index(match[2]))


def parse_time(text: str) -> float:
    """Seconds from 90s, 30m or 2h; a number alone counts seconds."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([SMH]?)", text.strip().upper())
    if match is None or not float(match[1]):
        raise Usage(f"{quoted(text)} is not a duration", "write 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "S": 1, "M": 60, "H": 3600}[match[2]]


def show_size(size: float) -> str:
    """Bytes in MiB or GiB, which is what the tables of quantized models count in."""
    mib = size / (1 << 20)
    return f"{mib / 1024:.2f} GiB" if mib >= 1024 else show_mib(mib) + " MiB"


def show_mib(mib: float) -> str:
    """Whole MiB from 100 on, as published tables have them; two decimals below."""
    return f"{mib:.0f}" if mib >= 100 else f"{mib:.2f}"


def show_time(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
