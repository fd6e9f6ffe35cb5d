"""pytorch_model.bin: tensors are read, and nothing else is done with the pickle."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import synthetic_checkpoints
from helpers.torch_archive import ORDERED, REBUILD, Global, Reduce, pickled, tensor, write_torch
from minitron_convert.checkpoint.pickle_values import RefusedPickle, load
from minitron_convert.checkpoint.torch_file import read_pickle
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import Damaged, MinitronError, Unsupported
from minitron_core.gguf import open_gguf

KINDS = {"F32": ("FloatStorage", 4), "F16": ("HalfStorage", 2), "BF16": ("BFloat16Storage", 2)}


def as_torch(folder: Path, name: str) -> None:
    """Turn a folder's safetensors into pytorch_model.bin."""
    shapes = synthetic_checkpoints.make_shapes(synthetic_checkpoints.make_config(name))
    dtype = synthetic_checkpoints.ALL[name][2]
    for path in folder.glob("model*"):
        path.unlink()
    state, storages = {}, {}
    for i, (tensor_name, shape) in enumerate(shapes.items()):
        state[tensor_name] = tensor(KINDS[dtype][0], str(i), shape)
        storages[str(i)] = synthetic_checkpoints.make_tensor(tensor_name, shape, dtype)
    write_torch(folder / "pytorch_model.bin", pickled(state), storages)


@pytest.mark.parametrize("variant", ["nemotron-old-keys", "nemotron-f16", "llama-bias"])
def test_read_pickle_gives_the_tensors_of_safetensors(
    variant: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint(variant)
    wanted = open_gguf(convert(ConvertSettings(folder, tmp_path / "a.gguf")).paths[0])
    as_torch(folder, variant)
    model = open_gguf(convert(ConvertSettings(folder, tmp_path / "b.gguf")).paths[0])
    assert model.metadata == wanted.metadata
    assert {info.name for info in model.tensors} == {info.name for info in wanted.tensors}
    for info in wanted.tensors:
        other = model.tensor(info.name)
        assert (other.shape, other.type) == (info.shape, info.type)
        assert (model.data(other) == wanted.data(info)).all()


def test_read_pickle_reads_the_published_form(
    shared: Path, examples: Path, tmp_path: Path, recorded: Callable[[str], dict[str, Any]]
) -> None:
    folder = tmp_path / "nano-nemotron"
    folder.mkdir()
    for path in (examples / "nano-nemotron").iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).symlink_to(path)
    source = shared / "models" / "nano-nemotron-bin" / "pytorch_model.bin"
    (folder / source.name).write_bytes(source.read_bytes())
    model = open_gguf(convert(ConvertSettings(folder, tmp_path, "f16")).paths[0])
    whole = open_gguf(
        convert(ConvertSettings(examples / "nano-nemotron", tmp_path / "b.gguf", "f16")).paths[0]
    )
    assert model.metadata == whole.metadata
    for info in whole.tensors:
        assert (model.data(model.tensor(info.name)) == whole.data(info)).all()
    assert len(model.tensors) == len(
        recorded("nano-nemotron")["runs"]["--outtype f16"][0]["tensors"]
    )


def test_read_pickle_reads_views_into_a_shared_storage(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    data = np.arange(12, dtype=np.float32)
    state = {
        "a": tensor("FloatStorage", "0", (2, 3), numel=12),
        "b": Reduce(
            Global("torch._utils", "_rebuild_parameter"),
            (tensor("FloatStorage", "0", (3, 2), numel=12, offset=6), True, ORDERED),
        ),
    }
    write_torch(path, pickled(state), {"0": data.tobytes()})
    first, second = read_pickle(path)
    assert first.read().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second.read(1, 3).tolist() == [[8, 9], [10, 11]]


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_read_pickle_refuses_a_pickle_that_calls_code(protocol: int, tmp_path: Path) -> None:
    path, target = tmp_path / "pytorch_model.bin", tmp_path / "ran"
    write_torch(path, pickle.dumps({"a": _Evil(target)}, protocol), {})
    with pytest.raises(Damaged, match="state dictionary"):
        read_pickle(path)
    assert not target.exists()


def test_read_pickle_names_the_function_it_refuses(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    write_torch(path, pickled({"a": Reduce(Global("builtins", "eval"), ("1",))}), {})
    with pytest.raises(Damaged, match=r"builtins\.eval"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (tensor("FloatStorage", "0", (2, 9)), Damaged),
        (tensor("FloatStorage", "7", (2, 2)), Damaged),
        (tensor("FloatStorage", "0", (2, 2), numel=3), Damaged),
        (tensor("FloatStorage", "0", (2, 2), offset=1), Damaged),
        (tensor("FloatStorage", "0", (2, -2)), Damaged),
        (tensor("FloatStorage", "0", (2**40, 2**40)), Damaged),
        (tensor("FloatStorage", "0", (2, 2), strides=(1, 2)), Unsupported),
        (tensor("ComplexFloatStorage", "0", (1, 2)), Unsupported),
        (Reduce(REBUILD, ("text", 0, (1,), (1,))), Damaged),
        (Reduce(REBUILD, (1,)), Damaged),
        (5, Damaged),
    ],
)
def test_read_pickle_refuses_impossible_tensors(
    entry: object, error: type[MinitronError], tmp_path: Path
) -> None:
    path = tmp_path / "pytorch_model.bin"
    write_torch(path, pickled({"a": entry}), {"0": bytes(16)})
    with pytest.raises(error):
        read_pickle(path)[0].read()


def test_read_pickle_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    for content, error in (
        (b"", Damaged),
        (b"PK\x03\x04cut", Damaged),
        (pickle.dumps({"a": 1}, 2), Unsupported),
    ):
        path.write_bytes(content)
        with pytest.raises(error):
            read_pickle(path)
    write_torch(path, pickled([1, 2]), {})
    with pytest.raises(Damaged, match="no dictionary"):
        read_pickle(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other", "x")
    with pytest.raises(Damaged, match=r"data\.pkl"):
        read_pickle(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bytes(10_000_000))
    with pytest.raises(Damaged, match="not plain"):
        read_pickle(path)


def test_read_pickle_refuses_a_cut_archive(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    write_torch(path, pickled({"a": tensor("FloatStorage", "0", (2, 2))}), {"0": bytes(16)})
    whole = path.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            read_pickle(path)


def test_read_pickle_takes_no_memory_on_the_word_of_a_pickle() -> None:
    assert load(b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".", {}) == {}
    for data in (b"\x8e" + struct.pack("<Q", 2**62), b"(" * 100, b"\x80\x02", b"0."):
        with pytest.raises(RefusedPickle):
            load(data, {})


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
def test_read_pickle_raises_only_its_own_errors(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path / "pytorch_model.bin"
    state = {"a": tensor("FloatStorage", "0", (2, 2)), "b": tensor("HalfStorage", "1", (4,))}
    write_torch(path, pickled(state), {"0": bytes(16), "1": bytes(8)})
    content = bytearray(path.read_bytes())
    for position, byte in changes:
        content[position % len(content)] = byte
    path.write_bytes(content)
    try:
        tensors = read_pickle(path)
    except MinitronError:
        return
    for reference in tensors:
        assert reference.read().shape == reference.shape


def test_open_checkpoint_reads_shards_with_an_index(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("nemotron-f16")
    wanted = open_gguf(convert(ConvertSettings(folder, tmp_path / "a.gguf")).paths[0])
    shapes = synthetic_checkpoints.make_shapes(synthetic_checkpoints.make_config("nemotron-f16"))
    for path in folder.glob("model*"):
        path.unlink()
    weight_map, names = {}, list(shapes)
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-{i + 1:05d}-of-00002.bin"
        state = {name: tensor("HalfStorage", str(j), shapes[name]) for j, name in enumerate(part)}
        blobs = {
            str(j): synthetic_checkpoints.make_tensor(name, shapes[name], "F16")
            for j, name in enumerate(part)
        }
        write_torch(folder / file, pickled(state), blobs)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = open_gguf(convert(ConvertSettings(folder, tmp_path / "b.gguf")).paths[0])
    for info in wanted.tensors:
        assert (model.data(model.tensor(info.name)) == wanted.data(info)).all()
