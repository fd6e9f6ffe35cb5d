"""Bad input: each kind has its sentence and its exit code, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.synthetic_checkpoints import write_safetensors
from minitron_convert.checkpoint.safetensors import read_header
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import (
    AlreadyExists,
    Damaged,
    Denied,
    MinitronError,
    NotFound,
    OutOfResources,
    Unsupported,
)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def rewrite(path: Path, change: Callable[[dict[str, Any]], None], keep: int | None = None) -> None:
    """Change the header of a safetensors file; `keep` bytes of the data stay."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[start:][:keep])


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / "model.safetensors", lambda value: change(value))


def content(name: str, data: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(data)


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def indexed(*files: str) -> Callable[[Path], None]:
    """An index that names `files` for all tensors."""

    def change(folder: Path) -> None:
        names = [tensor.name for tensor in read_header(folder / "model.safetensors")]
        weight_map = {name: files[i % len(files)] for i, name in enumerate(names)}
        text = json.dumps({"weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def sharded(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """A change of a folder whose weights then have a shard's name."""

    def both(folder: Path) -> None:
        change(folder)
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")

    return both


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def twice(folder: Path) -> None:
    shutil.copyfile(folder / "model.safetensors", folder / "model-2.safetensors")


def nan(folder: Path) -> None:
    path = folder / "model.safetensors"
    (tensor,) = [t for t in read_header(path) if t.name == "model.layers.1.mlp.up_proj.weight"]
    data = np.memmap(path, np.uint16, "r+", tensor.offset, tensor.shape)
    data[7, 3] = 0x7FC0
    data.flush()


NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"


class Case(NamedTuple):
    """A damage, the error that tells it, and words of its sentence."""

    damage: Callable[[Path], Any]
    error: type[MinitronError]
    words: str


CASES = {
    "no config": Case(removed("config.json"), NotFound, "no config.json"),
    "config is not JSON": Case(content("config.json", b"{nonsense"), Damaged, "not valid JSON"),
    "config is not an object": Case(content("config.json", b"[1]"), Damaged, "no JSON object"),
    "config is binary": Case(content("config.json", b"\xff\x00"), Damaged, "not UTF-8"),
    "config is nested": Case(content("config.json", b"[" * 100_000), Damaged, "not valid JSON"),
    "no architecture": Case(config(architectures=None), Damaged, "architecture"),
    "other architecture": Case(config(architectures=["GPT2"]), Unsupported, "GPT2"),
    "quantized": Case(config(quantization_config={"bits": 4}), Unsupported, "quantized"),
    "size is text": Case(config(hidden_size="64"), Damaged, "hidden_size"),
    "size is missing": Case(config(intermediate_size=None), Damaged, "intermediate_size"),
    "size is negative": Case(config(num_attention_heads=-4), Damaged, "num_attention_heads"),
    "rope is a list": Case(config(rope_scaling=[1]), Damaged, "rope"),
    "rope is unknown": Case(config(rope_scaling={"type": "other"}), Unsupported, "'other'"),
    "rope has no factor": Case(config(rope_scaling={"type": "linear"}), Damaged, "factor"),
    "theta is text": Case(config(rope_theta="x"), Damaged, "theta"),
    "fewer layers": Case(config(num_hidden_layers=1), Damaged, "no place"),
    "more layers": Case(
        config(num_hidden_layers=3), Damaged, "model.layers.2.self_attn.q_proj.weight"
    ),
    "other shape": Case(config(intermediate_size=97), Damaged, "wants"),
    "other vocabulary": Case(config(vocab_size=5000), Damaged, "5000"),
    "no weights": Case(removed("model.safetensors"), NotFound, "no weights"),
    "no tokenizer": Case(removed("tokenizer.json"), NotFound, "no tokenizer"),
    "tokenizer is not JSON": Case(content("tokenizer.json", b"{"), Damaged, "tokenizer.json"),
    "tokenizer has no model": Case(content("tokenizer.json", b"{}"), Damaged, "no model"),
    "tokenizer has no ids": Case(
        content("tokenizer.json", b'{"model": {"vocab": 5}}'), Damaged, "no merges"
    ),
    "cut off": Case(cut, Damaged, "cut off"),
    "empty weights": Case(content("model.safetensors", b""), Damaged, "cut off"),
    "header length lies": Case(
        content("model.safetensors", (2**60).to_bytes(8, "little") + b"{}"), Damaged, "cut off"
    ),
    "header is not JSON": Case(
        content("model.safetensors", (2).to_bytes(8, "little") + b"{]"), Damaged, "JSON"
    ),
    "header names a tensor twice": Case(
        content("model.safetensors", (16).to_bytes(8, "little") + b'{"a":{}, "a":{}}'),
        Damaged,
        "'a' twice",
    ),
    "overlap": Case(
        header(lambda value: value[UP].update(data_offsets=[0, 96 * 64 * 2])), Damaged, "overlaps"
    ),
    "shape and bytes disagree": Case(
        header(lambda value: value[NORM].update(shape=[63])), Damaged, "wrongly"
    ),
    "negative shape": Case(
        header(lambda value: value[NORM].update(shape=[-8, -8])), Damaged, "wrongly"
    ),
    "no offsets": Case(header(lambda value: value[NORM].pop("data_offsets")), Damaged, "wrongly"),
    "data type": Case(header(lambda v: v[NORM].update(dtype="F8_E5M2")), Unsupported, "F8_E5M2"),
    "missing tensors": Case(
        header(lambda value: (value.pop(NORM), value.pop(UP))),
        Damaged,
        f"{UP}.*{NORM}|{NORM}.*{UP}",
    ),
    "missing output": Case(header(lambda value: value.pop("lm_head.weight")), Damaged, "lm_head"),
    "unknown tensor": Case(
        header(lambda value: value.update(other=value.pop(NORM))), Damaged, "lacks|other"
    ),
    "duplicate tensors": Case(twice, Damaged, "model-2.safetensors"),
    "index names a missing file": Case(
        sharded(indexed("absent.safetensors", "model-1.safetensors")), NotFound, "absent"
    ),
    "index leaves the folder": Case(indexed("../m.safetensors"), Damaged, "outside"),
    "index is absolute": Case(indexed("/etc/passwd"), Damaged, "outside"),
    "index names a folder": Case(indexed(".."), Damaged, "outside"),
    "index is empty": Case(content("model.safetensors.index.json", b"{}"), Damaged, "weight_map"),
    "index names other tensors": Case(
        sharded(
            content("model.safetensors.index.json", b'{"weight_map": {"x": "model-1.safetensors"}}')
        ),
        Damaged,
        "no file holds x",
    ),
    "NaN": Case(nan, Damaged, r"blk\.1\.ffn_up\.weight.*\[7, 3\]"),
}


@pytest.mark.parametrize("name", CASES)
def test_convert_refuses_bad_checkpoints(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    damage, error, words = CASES[name]
    folder = checkpoint("llama-linear")
    damage(folder)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(error, match=words) as caught:
        convert(ConvertSettings(folder, out))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert not list(out.iterdir())


def test_errors_have_their_exit_codes() -> None:
    codes = [kind.exit_code for kind in (NotFound, Unsupported, OutOfResources, Denied, Damaged)]
    assert codes == [3, 4, 6, 7, 8]
    assert AlreadyExists.exit_code == MinitronError.exit_code == 1


def test_convert_refuses_a_source_that_is_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        convert(ConvertSettings(tmp_path / "absent"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFound, match="a file"):
        convert(ConvertSettings(tmp_path / "file"))


def test_convert_refuses_an_unknown_output_type(examples: Path) -> None:
    with pytest.raises(Unsupported, match="q9"):
        convert(ConvertSettings(examples / "nano-llama", outtype="q9"))


def test_convert_keeps_an_existing_output(examples: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("mine")
    with pytest.raises(AlreadyExists, match="exists"):
        convert(ConvertSettings(examples / "nano-llama", path))
    assert path.read_text() == "mine"
    convert(ConvertSettings(examples / "nano-llama", path, force=True))
    assert path.read_bytes()[:4] == b"GGUF"


def test_convert_wants_an_existing_output_folder(examples: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="absent"):
        convert(ConvertSettings(examples / "nano-llama", tmp_path / "absent" / "m.gguf"))


def test_convert_checks_the_disk_before_the_work(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutOfResources, match="1000 bytes free"):
        convert(ConvertSettings(examples / "nano-llama", tmp_path))
    assert not list(tmp_path.iterdir())


def test_convert_leaves_nothing_when_interrupted(examples: Path, tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if len(list(tmp_path.glob("*.gguf"))) == 2:
            raise KeyboardInterrupt

    settings = ConvertSettings(examples / "nano-llama", tmp_path, "f16", split_max_size=4_000_000)
    with pytest.raises(KeyboardInterrupt):
        convert(settings, stop)
    assert not list(tmp_path.iterdir())


def test_convert_refuses_values_too_large_for_f16(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-linear")
    path = folder / "model.safetensors"
    (tensor,) = [t for t in read_header(path) if t.name == UP]
    data = np.memmap(path, np.uint16, "r+", tensor.offset, tensor.shape)
    data[0, 0] = 0x4800  # 131072 in bf16
    data.flush()
    with pytest.raises(Unsupported, match=r"blk\.0\.ffn_up\.weight") as caught:
        convert(ConvertSettings(folder, tmp_path, "f16"))
    assert "bf16" in caught.value.hint
    convert(ConvertSettings(folder, tmp_path, "bf16"))


def test_convert_follows_links_within_a_hub_cache(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-wide-heads")
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(folder.iterdir()):
        shutil.move(path, blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    assert convert(ConvertSettings(snapshot, tmp_path / "m.gguf")).tensors == 22


@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=3), st.integers(0, 60)
)
def test_read_header_raises_only_its_own_errors(
    tmp_path: Path, changes: list[tuple[int, int]], missing: int
) -> None:
    path = tmp_path / "model.safetensors"
    shapes = {"a": (2, 3), "b": (4,), "c": (1, 2)}
    write_safetensors(path, shapes, list(shapes), "BF16")
    data = bytearray(path.read_bytes())
    for position, byte in changes:
        data[position % len(data)] = byte
    path.write_bytes(data[: len(data) - missing])
    with suppress(MinitronError):
        for tensor in read_header(path):
            assert tensor.read().shape == tensor.shape
