"""Small files that appear whole or not at all, and that notice a change."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minitron_core.atomic_files import read_checksummed, write_checksummed, write_whole
from minitron_core.errors import MinitronError, NotFound, OutOfResources
from minitron_core.file_lock import open_locked

DOCUMENTS = st.dictionaries(
    st.text(), st.integers() | st.text() | st.lists(st.booleans()), min_size=1
)
QUIETLY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)


def test_write_whole_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "long before")
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"
    write_whole(path, "\udc80")
    assert path.read_bytes() == rb"\udc80"
    assert list(tmp_path.iterdir()) == [path]


def test_write_whole_keeps_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "before")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfResources, match="disk is full"):
        write_whole(path, "after")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(NotFound):
        write_whole(tmp_path / "none" / "a.txt", "")


def test_write_whole_refuses_a_second_writer(tmp_path: Path) -> None:
    with (
        open_locked(tmp_path / ".a.txt.partial", create=True),
        pytest.raises(MinitronError, match="another minitron is writing"),
    ):
        write_whole(tmp_path / "a.txt", "x")


@QUIETLY
@given(DOCUMENTS, st.data())
def test_read_checksummed_notices_any_changed_bit(
    tmp_path: Path, document: dict[str, object], data: st.DataObject
) -> None:
    path = tmp_path / "a.json"
    write_checksummed(path, document)
    assert read_checksummed(path) == document
    content = bytearray(path.read_bytes())
    at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    content[at] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        read_checksummed(path)
