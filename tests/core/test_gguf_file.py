"""Reading and writing GGUF files: round trips, the bytes of gguf-py, and damaged input."""

from __future__ import annotations

import errno
import os
import struct
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minitron_core.errors import (
    Damaged,
    Denied,
    MinitronError,
    NotFound,
    OutOfResources,
    Unsupported,
)
from minitron_core.gguf import (
    F16,
    F32,
    Q8_0,
    TYPE,
    TYPE_ID,
    GgufWriter,
    KeyValue,
    TensorSpec,
    ValueType,
    encode_header,
    file_size,
    open_gguf,
    open_shards,
    tensor_bytes,
)

METADATA = [
    KeyValue.of("general.architecture", ValueType.STRING, "llama"),
    KeyValue.of("a.number", ValueType.UINT32, 7),
    KeyValue.of("a.float", ValueType.FLOAT32, 1e-5),
    KeyValue.of("a.flag", ValueType.BOOL, True),
    KeyValue.of("a.words", ValueType.ARRAY, ["x", "yé", ""]),
    KeyValue.of("a.numbers", ValueType.ARRAY, [1, -2, 3]),
    KeyValue.of("a.scores", ValueType.ARRAY, [0.5, -1e4]),
    KeyValue.of("a.flags", ValueType.ARRAY, [True, False]),
]
TENSORS = [
    TensorSpec("one", (5,), F32),
    TensorSpec("two", (32, 3), Q8_0),
    TensorSpec("three", (7, 2), F16),
]


def _data(tensor: TensorSpec) -> bytes:
    return np.random.default_rng(len(tensor.name)).bytes(tensor.nbytes)


def _write(path: Path, metadata: list[KeyValue] = METADATA) -> None:
    with GgufWriter(path, metadata, TENSORS) as writer:
        for tensor in TENSORS:
            data = _data(tensor)
            writer.write(data[:9])
            writer.write(np.frombuffer(data[9:], np.uint8))


def test_types_equal_gguf_py() -> None:
    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        # gguf-py gives q8_1, which no file holds, two more bytes a scale than ggml does.
        if kind.name != "Q8_1":
            assert TYPE[kind.value][1:] == sizes
        assert TYPE_ID[kind.name.lower().replace("_k", "_K")] == kind.value
    assert set(TYPE) - {kind.value for kind in gguf.GGML_QUANT_SIZES} <= {41, 42}


def test_writer_equals_gguf_py(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    _write(ours)
    writer = gguf.GGUFWriter(theirs, "llama")
    writer.add_uint32("a.number", 7)
    writer.add_float32("a.float", 1e-5)
    writer.add_bool("a.flag", True)
    writer.add_array("a.words", ["x", "yé", ""])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.scores", [0.5, -1e4])
    writer.add_array("a.flags", [True, False])
    for tensor in TENSORS:
        raw = np.frombuffer(_data(tensor), np.uint8).reshape(*tensor.shape[:0:-1], -1)
        kind = gguf.GGMLQuantizationType(tensor.type)
        writer.add_tensor(tensor.name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.stat().st_size == file_size(METADATA, TENSORS)


def test_open_gguf_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    _write(path)
    model = open_gguf(path)
    assert list(model.metadata.values()) == METADATA
    assert model.get("a.words") == ["x", "yé", ""]
    assert model.get("a.numbers").tolist() == [1, -2, 3]
    assert model.get("a.float") == np.float32(1e-5)
    assert model.get("absent", 3) == 3
    for tensor in TENSORS:
        info = model.tensor(tensor.name)
        assert (info.shape, info.type) == (tensor.shape, tensor.type)
        assert model.data(info).tobytes() == _data(tensor)
        assert not model.data(info).flags.writeable
    assert model.tensor("two").rows == 3
    assert model.tensor("two").row_size == 34
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


_SCALARS = {
    ValueType.UINT8: st.integers(0, 2**8 - 1),
    ValueType.INT16: st.integers(-(2**15), 2**15 - 1),
    ValueType.INT64: st.integers(-(2**63), 2**63 - 1),
    ValueType.UINT64: st.integers(0, 2**64 - 1),
    ValueType.FLOAT32: st.floats(width=32, allow_nan=False),
    ValueType.FLOAT64: st.floats(allow_nan=False),
    ValueType.BOOL: st.booleans(),
    ValueType.STRING: st.text(),
}


@given(st.data())
def test_key_value_round_trips(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(_SCALARS)))
    values = data.draw(st.lists(_SCALARS[kind], min_size=1))
    assert KeyValue.of("k", kind, values[0]).value == values[0]
    array = KeyValue.of("k", ValueType.ARRAY, values, kind)
    assert list(array.value) == values
    assert array.element_type == kind


def test_open_gguf_tells_similar_long_values_apart(tmp_path: Path) -> None:
    words = [f"word {number}" for number in range(3000)]
    changed, fewer = [*words[:-1], "last"], words[:-1]
    for number, each in enumerate((words, changed, fewer, words)):
        path = tmp_path / f"{number}.gguf"
        _write(path, [KeyValue.of("words", ValueType.ARRAY, each), *METADATA])
        model = open_gguf(path)
        assert model.get("words") == each and model.get("a.number") == 7
    scores = KeyValue.of("words", ValueType.ARRAY, [0.5] * 9000)
    _write(path, [scores, *METADATA])
    assert open_gguf(path).metadata["words"] == scores
    path.write_bytes((tmp_path / "0.gguf").read_bytes()[:20_000])
    with pytest.raises(Damaged, match="at the key 'words'"):
        open_gguf(path)


def test_open_gguf_limits_nested_arrays(tmp_path: Path) -> None:
    value: object = [1]
    for _ in range(3):
        value = [value]
    path = tmp_path / "m.gguf"
    _write(path, [KeyValue.of("deep", ValueType.ARRAY, value)])
    assert open_gguf(path).get("deep")[0][0][0].tolist() == [1]
    with pytest.raises(Damaged, match="nested"):
        _write(path, [KeyValue.of("deep", ValueType.ARRAY, [value])])


@pytest.mark.parametrize("alignment", [8, 64, 128, 4096])
def test_writer_keeps_the_alignment_of_the_metadata(tmp_path: Path, alignment: int) -> None:
    path, rows = tmp_path / "m.gguf", np.arange(7, dtype=np.float32)
    metadata = [KeyValue.of("general.alignment", ValueType.UINT32, alignment)]
    specs = [TensorSpec(name, (7,), F32) for name in "ab"]
    with GgufWriter(path, metadata, specs) as writer:
        writer.write(rows)
        writer.write(rows + 1)
    file = open_gguf(path)
    assert path.stat().st_size == file_size(metadata, specs)
    assert file.data(file.tensors[1]).view(np.float32).tolist() == (rows + 1).tolist()


def test_key_value_keeps_strings_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    _write(path, [KeyValue.of("k", ValueType.STRING, b"\xff\xfe")])
    model = open_gguf(path)
    assert KeyValue.of("k", ValueType.STRING, model.get("k")).raw == model.metadata["k"].raw


def test_writer_leaves_nothing_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 of 3"), GgufWriter(tmp_path / "m", METADATA, TENSORS):
        pass
    with (
        pytest.raises(ValueError, match="bytes for 20"),
        GgufWriter(tmp_path / "m", METADATA, TENSORS) as writer,
    ):
        writer.write(bytes(21))
    assert list(tmp_path.iterdir()) == []


def test_writer_resumes_after_whole_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = GgufWriter(path, METADATA, TENSORS)
    writer.write(_data(TENSORS[0]))
    writer.write(_data(TENSORS[1])[:50])
    writer.sync()
    writer.close()
    with GgufWriter(path, METADATA, TENSORS, resume_tensors=1) as writer:
        for tensor in TENSORS[1:]:
            writer.write(_data(tensor))
    whole = path.read_bytes()
    _write(path)
    assert path.read_bytes() == whole
    GgufWriter(path, METADATA, TENSORS).close()
    with pytest.raises(Damaged, match="beginning"):
        GgufWriter(path, METADATA[1:], TENSORS, resume_tensors=1)


def test_writer_starts_writing_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    def advise(_: int, start: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        told.append((start, size))
        raise OSError(errno.EINVAL, "advice is not taken here")

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr("minitron_core.gguf.writer._WINDOW_BYTES", 5000)
    data = np.arange(4096, dtype=np.float32)
    path = tmp_path / "m.gguf"
    with GgufWriter(path, METADATA, [TensorSpec("t", (4096,), F32)]) as writer:
        for part in np.split(data, 16):
            writer.write(part)
    assert len(told) == 3 and told[0][0] == 0
    assert all(start + size == after for (start, size), (after, _) in pairwise(told))
    model = open_gguf(path)
    assert (model.data(model.tensor("t")).view(np.float32) == data).all()


def test_writer_explains_system_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound):
        GgufWriter(tmp_path / "absent" / "m.gguf", METADATA, TENSORS)
    writer = GgufWriter(tmp_path / "m.gguf", METADATA, TENSORS)
    for number, error in ((errno.EROFS, Denied), (errno.ENOSPC, OutOfResources)):

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("minitron_core.gguf.writer._write_all", refuse)
        with pytest.raises(error):
            writer.write(bytes(20))
        with pytest.raises(error):
            GgufWriter(tmp_path / "n.gguf", METADATA, TENSORS)
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_open_gguf_refuses_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_gguf(tmp_path / "absent.gguf")
    for number, content in enumerate([b"", b"GGUF", b"\x80\x02" * 40]):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(content)
        with pytest.raises(Damaged):
            open_gguf(path)
    (tmp_path / "v1").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(Unsupported, match="version 1"):
        open_gguf(tmp_path / "v1")
    with pytest.raises(MinitronError):
        open_gguf(tmp_path)


def _damaged(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(Damaged) as caught:
        open_gguf(path)
    return str(caught.value)


def _file(tensors: list[TensorSpec], offsets: list[int] | None = None, tail: int = 0) -> bytes:
    header = bytearray(encode_header(METADATA[:2], tensors))
    for tensor, offset in zip(tensors, offsets or [], strict=False):
        at = header.index(tensor.name.encode()) + len(tensor.name) + 4 + 8 * len(tensor.shape) + 4
        header[at : at + 8] = struct.pack("<Q", offset)
    return bytes(header) + bytes(tail)


def test_open_gguf_checks_lengths_before_it_allocates(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    key = struct.pack("<Q", 1) + b"k"
    assert "do not fit" in _damaged(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    assert "reaches beyond" in _damaged(tmp_path, head + struct.pack("<Q", 2**62) + bytes(50))
    array = key + struct.pack("<IIQ", 9, 4, 2**61)
    assert "2305843009213693952 elements" in _damaged(tmp_path, head + array + bytes(50))
    assert "type 77" in _damaged(tmp_path, head + key + struct.pack("<I", 77) + bytes(50))
    two = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (key + struct.pack("<II", 4, 1))
    assert "twice" in _damaged(tmp_path, two)


def test_open_gguf_refuses_impossible_tensors(tmp_path: Path) -> None:
    one, two = TensorSpec("one", (8,), F32), TensorSpec("two", (8,), F32)
    assert "twice" in _damaged(tmp_path, _file([one, one], tail=64))
    assert "cut off" in _damaged(tmp_path, _file([one, two], tail=63))
    assert "unaligned" in _damaged(tmp_path, _file([one, two], [0, 4], tail=64))
    assert "overlaps" in _damaged(tmp_path, _file([one, two], [0, 0], tail=64))
    huge = TensorSpec("huge", (2**40, 2**40), F32)
    assert "impossible" in _damaged(tmp_path, _file([huge], tail=64))
    unknown = _file([one], tail=64).replace(struct.pack("<QI", 8, F32), struct.pack("<QI", 8, 99))
    assert "type 99" in _damaged(tmp_path, unknown)
    ragged = _file([one], tail=64).replace(struct.pack("<QI", 8, F32), struct.pack("<QI", 8, 12))
    assert "256" in _damaged(tmp_path, ragged)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(4, 700), st.integers(0, 255)), max_size=4), st.integers(0, 900)
)
def test_open_gguf_survives_any_damage(
    tmp_path: Path, changes: list[tuple[int, int]], keep: int
) -> None:
    path = tmp_path / "m.gguf"
    _write(path)
    content = bytearray(path.read_bytes())
    for position, byte in changes:
        content[position % len(content)] = byte
    path.write_bytes(content[: len(content) - keep % 100])
    try:
        model = open_gguf(path)
    except (Damaged, Unsupported):
        return
    for info in model.tensors:
        assert model.data(info).nbytes == info.nbytes == tensor_bytes(info.type, info.shape)
    for entry in model.metadata.values():
        assert entry.value is not None


def _shard(folder: Path, number: int, count: int, tensors: list[str], total: int) -> Path:
    path = folder / f"m-{number + 1:05d}-of-{count:05d}.gguf"
    metadata = [
        KeyValue.of("split.no", ValueType.UINT16, number),
        KeyValue.of("split.count", ValueType.UINT16, count),
        KeyValue.of("split.tensors.count", ValueType.INT32, total),
    ]
    with GgufWriter(path, metadata, [TensorSpec(name, (1,), F32) for name in tensors]) as writer:
        for _ in tensors:
            writer.write(bytes(4))
    return path


def test_open_shards_opens_all_from_the_first(tmp_path: Path) -> None:
    first = _shard(tmp_path, 0, 2, ["a"], 3)
    with pytest.raises(NotFound, match="00002-of-00002"):
        open_shards(first)
    second = _shard(tmp_path, 1, 2, ["b", "c"], 3)
    shards = open_shards(first)
    assert [info.name for shard in shards for info in shard.tensors] == ["a", "b", "c"]
    with pytest.raises(Unsupported, match="not the first"):
        open_shards(second)
    _shard(tmp_path, 1, 2, ["a", "c"], 3)
    with pytest.raises(Damaged, match="twice"):
        open_shards(first)
    _shard(tmp_path, 1, 2, ["c"], 3)
    with pytest.raises(Damaged, match="2 tensors, not 3"):
        open_shards(first)
    single = tmp_path / "single.gguf"
    _write(single)
    assert len(open_shards(single)) == 1
    first.rename(tmp_path / "x.gguf")
    with pytest.raises(Damaged, match="name"):
        open_shards(tmp_path / "x.gguf")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    version=st.integers(0, 4),
    tensors=st.integers(0, 2**64 - 1) | st.integers(0, 3),
    keys=st.integers(0, 2**64 - 1) | st.integers(0, 3),
    rest=st.binary(max_size=120),
)
def test_open_gguf_takes_or_refuses_any_header(
    tmp_path: Path, version: int, tensors: int, keys: int, rest: bytes
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest)
    try:
        model = open_gguf(path)
    except (Damaged, Unsupported) as error:
        assert str(error).startswith(str(path)) and not str(error).endswith(".")
        return
    assert (len(model.tensors), len(model.metadata)) == (tensors, keys)
