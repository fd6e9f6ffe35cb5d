"""Reading the data of tasks: plain or compressed text, JSON lines, CSV; errors name the line."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_core.errors import Damaged, Denied, NotFound, Usage
from minitron_core.quoting import quoted
from minitron_core.text_encoding import as_utf8

_UNPACK: dict[str, Callable[..., Any]] = {
    ".bz2": bz2.open,
    ".gz": gzip.open,
    ".xz": lzma.open,
}
_PIECE = 1 << 20
# the most that a file may unpack to: questions compress to a tenth of their size
_LEAST_LIMIT, _LARGEST_RATIO = 64 << 20, 64


@dataclass(frozen=True)
class Place:
    """A place in a file, which errors name; `where` is a line, an entry or a question."""

    path: Path
    where: str

    def error(self, what: str, hint: str = "") -> Damaged:
        """The error for data that cannot be right."""
        return Damaged(f"{self.path.name}, {self.where}: {what}", hint)

    def index(self, label: object, count: int, first: int = 0) -> int:
        """A label, counted from `first`, as an index below `count`."""
        try:
            number = int(str(label).strip()) - first
        except ValueError:
            number = -1
        if not 0 <= number < count:
            last = first + count - 1
            raise self.error(f"the label is {quoted(label)}, not a number from {first} to {last}")
        return number


@dataclass(frozen=True)
class Record(Place):
    """An object of a JSON file."""

    values: dict[str, Any]

    def text(self, key: str) -> str:
        """A text that the record must have."""
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.error(f"no text {quoted(key)}")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of two or more texts that the record must have."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"no list of texts {quoted(key)}")
        if len(value) < 2:
            raise self.error(f"{quoted(key)} has {len(value)} texts; a choice needs two")
        return value


@dataclass(frozen=True)
class CsvRow(Place):
    """A row of a CSV file."""

    cells: list[str]


def read_data(path: Path) -> bytes:
    """The bytes of a file, unpacked where its name ends in .bz2, .gz or .xz; Damaged if empty."""
    try:
        data = _unpacked(path) if path.suffix in _UNPACK else path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise Usage(f"{path} is a folder", "name the file with the questions") from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise Damaged(f"{path.name} cannot be unpacked: it is cut off or damaged") from error
    except OSError as error:
        if error.errno is None:  # bz2's way of saying that the data are bad
            raise Damaged(f"{path.name} cannot be unpacked: {error}") from error
        raise Denied(f"{path} cannot be read: {error.strerror}") from error
    if not data.strip():
        raise Damaged(f"{path.name} is empty")
    return data


def _unpacked(path: Path) -> bytes:
    limit = max(_LEAST_LIMIT, _LARGEST_RATIO * path.stat().st_size)
    data = bytearray()
    with _UNPACK[path.suffix](path) as file:
        while piece := file.read(_PIECE):
            data += piece
            if len(data) > limit:
                raise Damaged(f"{path.name} unpacks to more than {limit >> 20} MiB")
    return bytes(data)


def read_lines(path: Path) -> list[str]:
    """The lines of a text without their ends; odd bytes survive into the tokens."""
    text = as_utf8(read_data(path)).decode("utf-8", errors="surrogateescape")
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n")


def is_json(path: Path) -> bool:
    """Whether a file holds JSON or JSON lines, and no other text."""
    return as_utf8(read_data(path)).lstrip()[:1] in (b"{", b"[")


def read_records(path: Path) -> Iterator[Record]:
    """Objects of a JSON list or of JSON lines."""
    data = as_utf8(read_data(path))
    if data.lstrip()[:1] == b"[":
        records: Any = _json(path, 1, data)
        named = [(f"entry {number}", record) for number, record in enumerate(records, 1)]
    else:
        named = [
            (f"line {number}", _json(path, number, line))
            for number, line in enumerate(data.splitlines(), 1)
            if line.strip()
        ]
    for where, record in named:
        if not isinstance(record, dict):
            raise Place(path, where).error("not a JSON object")
        yield Record(path, where, record)


def _json(path: Path, first_line: int, data: bytes) -> Any:
    line, what = first_line, "nested too deep"
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        line, what = first_line + error.lineno - 1, error.msg
    except UnicodeDecodeError as error:
        what = error.reason
    except ValueError:  # Python reads no numbers of thousands of digits
        what = "a number has too many digits"
    except RecursionError:
        pass
    raise Place(path, f"line {line}").error(f"not JSON: {what}")


def read_rows(path: Path) -> Iterator[CsvRow]:
    """Rows of a CSV file but for empty lines."""
    text = as_utf8(read_data(path)).decode("utf-8", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield CsvRow(path, f"line {line}", row)
            line = reader.line_num + 1
    except csv.Error as error:
        raise Place(path, f"line {line}").error(f"not CSV: {error}") from error
