"""Hashes of files, of inputs, and of models."""

import hashlib
import os
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_core import hashing
from minitron_core.gguf import (
    F16,
    F32,
    Gguf,
    GgufWriter,
    KeyValue,
    TensorSpec,
    ValueType,
    open_gguf,
)
from minitron_core.hashing import file_sha256, fingerprint, model_fingerprint

PARTS = st.lists(st.binary(max_size=4), max_size=4)


@pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 18) + 1])
def test_file_sha256_equals_hashlib(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert file_sha256(path) == hashlib.sha256(b"x" * size).hexdigest()


def test_file_sha256_reads_a_large_file_once_unless_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_REMEMBERED_BYTES", 8)
    monkeypatch.setattr(hashing, "_hashed", {})
    path, small = tmp_path / "file", tmp_path / "small"
    path.write_bytes(b"12345678")
    small.write_bytes(b"1234567")
    first = file_sha256(path), file_sha256(small)
    assert list(hashing._hashed.values()) == [first[0]]
    with monkeypatch.context() as patch:
        patch.setattr(hashing, "_CHUNK_BYTES", 0)  # nothing is read
        assert file_sha256(path) == first[0]
        assert file_sha256(small) != first[1]
    times = path.stat()
    path.write_bytes(b"87654321")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the change time tells
    assert file_sha256(path) == hashlib.sha256(b"87654321").hexdigest()


def test_file_sha256_stops_when_given_up(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(CancelledError):
        file_sha256(path, given_up)
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "none")


@given(PARTS, PARTS)
def test_fingerprint_differs_for_different_lists(first: list[bytes], second: list[bytes]) -> None:
    assert (fingerprint(*first) == fingerprint(*second)) == (first == second)


def test_fingerprint_takes_text_as_utf8() -> None:
    assert fingerprint("é") == fingerprint("é".encode())


def model(path: Path, matrix_type: int, norm: float, name: str = "a.weight") -> list[Gguf]:
    keys = [KeyValue.of("general.name", ValueType.STRING, path.name)]
    specs = [TensorSpec(name, (4, 2), matrix_type), TensorSpec("norm.weight", (4,), F32)]
    with GgufWriter(path, keys, specs) as writer:
        writer.write(bytes(specs[0].nbytes))
        writer.write(np.full(4, norm, np.float32))
    return [open_gguf(path)]


def test_model_fingerprint_is_that_of_the_model_not_the_level(tmp_path: Path) -> None:
    full = model_fingerprint(model(tmp_path / "a", F32, 1.0))
    assert model_fingerprint(model(tmp_path / "b", F16, 1.0)) == full
    assert model_fingerprint(model(tmp_path / "c", F32, 2.0)) != full
    assert model_fingerprint(model(tmp_path / "d", F32, 1.0, "b.weight")) != full
