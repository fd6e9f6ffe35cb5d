"""Small files that appear whole or not at all, and JSON files that end in their own checksum."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from minitron_core.errors import from_os_error
from minitron_core.file_lock import open_locked

_CHECKSUM = b',\n "checksum": "%s"\n}\n'
_CHECKSUM_BYTES = len(_CHECKSUM) - 2 + 64


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file durably: to a partial file first, which is then renamed.

    Bytes of a name that are not Unicode are written as \\udc80.
    Raises OutOfResources for a full disk, Denied where writing is not permitted, MinitronError
    where another process is writing the same file.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open_locked(partial, create=True) as file:
            try:
                file.truncate(0)
                rest = memoryview(_bytes(data))
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
                partial.replace(path)
            except OSError:
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise from_os_error(error, path, "write") from error


def _bytes(data: str | bytes) -> bytes:
    return data.encode(errors="backslashreplace") if isinstance(data, str) else data


def write_checksummed(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON object that ends in the SHA-256 of everything before it, as write_whole does."""
    body = json.dumps(document, indent=1).encode().removesuffix(b"\n}")
    write_whole(path, body + _CHECKSUM % hashlib.sha256(body).hexdigest().encode())


def read_checksummed(path: Path) -> dict[str, Any]:
    """The object of a file of write_checksummed; ValueError where a bit of it has changed."""
    data = path.read_bytes()
    body = data[:-_CHECKSUM_BYTES]
    if data[len(body) :] != _CHECKSUM % hashlib.sha256(body).hexdigest().encode():
        raise ValueError(f"{path.name} does not match its checksum")
    document: dict[str, Any] = json.loads(body + b"\n}")
    return document
