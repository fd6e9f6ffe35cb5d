"""Tiny checkpoints of every architecture, made from their description in tests/data/convert/tiny.

Each description holds a config, the checkpoint's tensors, and what llama.cpp's converter made of
them: keys and tensors with the hash of their data. Weights depend on the tensor's name alone.
"""

import itertools
import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# on its own feet, because llama.cpp's converter is recorded in an environment without minitron
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TINY = ROOT / "tests" / "data" / "convert" / "tiny"
NAMES = tuple(sorted(path.stem for path in TINY.glob("*.json")))
LONG = 24  # arrays beyond are recorded by their length
# The vocabularies' sources; the others are variants of the first.
_TOKENIZERS = {"spm": "nano-nemotron"}

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # data type and shape by name


def description(name: str) -> dict[str, Any]:
    """The description of a checkpoint."""
    value = json.loads((TINY / f"{name}.json").read_text())
    assert isinstance(value, dict)
    return value


def source_tensors(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a checkpoint; a description gives the numbers in a name as ranges."""
    found = {}
    for pattern, dtype, shape, numbers in description(name)["sources"]:
        for combination in itertools.product(*numbers):
            found[pattern.format(*combination)] = (dtype, tuple(shape))
    return found


def make_checkpoint(
    name: str, folder: Path, config: Mapping[str, Any] | None = None, shapes: Shapes | None = None
) -> Path:
    """Write the checkpoint into `folder` / `name`; `config` changes keys, None removes one."""
    made = folder / name
    made.mkdir(parents=True)
    told = description(name)
    changed = {**told["config"], **(config or {})}
    kept = {
        key: value
        for key, value in changed.items()
        if value is not None or key not in (config or {})
    }
    (made / "config.json").write_text(json.dumps(kept))
    _write_tokenizer(made, told["tokenizer"])
    write_weights(made / "model.safetensors", source_tensors(name) if shapes is None else shapes)
    return made


def write_weights(path: Path, shapes: Shapes) -> None:
    """Write a safetensors file of random weights, in the order of names."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name in sorted(shapes):
        dtype, shape = shapes[name]
        data = weights(name, shape, dtype)
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + len(data)],
        }
        blobs.append(data)
        offset += len(data)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"".join(blobs))


def weights(name: str, shape: tuple[int, ...], dtype: str) -> bytes:
    """The bytes of a tensor. Logarithms of decay rates are positive, scales of MXFP4 are sane."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if dtype == "F8_E4M3":
        return random.integers(0, 127, shape).astype(np.uint8).tobytes()  # no NaN
    if dtype == "U8" and not name.endswith("_scales"):
        random.standard_normal(shape)
        return random.integers(0, 256, shape).astype(np.uint8).tobytes()
    values = (random.standard_normal(shape) * 0.1).astype(np.float32)
    if name.endswith(("_scale_inv", "weight_scale")):
        values = np.abs(values) / 100
    if dtype == "U8":
        return random.integers(119, 125, shape).astype(np.uint8).tobytes()
    if name.endswith("A_log"):
        values = np.abs(random.standard_normal(shape)).astype(np.float32) * 2
    if dtype == "F32":
        return values.tobytes()
    if dtype == "F16":
        return values.astype(np.float16).tobytes()
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def _write_tokenizer(folder: Path, kind: str) -> None:
    for path in (EXAMPLES / _TOKENIZERS.get(kind, "nano-llama")).glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    if kind == "bpe-gpt2class":
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings |= {"tokenizer_class": "GPT2Tokenizer", "unk_token": settings["eos_token"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if kind == "bpe-glm":
        _rename_special_tokens(folder)


def _rename_special_tokens(folder: Path) -> None:
    """GLM's special tokens: two renamed, two in place of the last of the vocabulary."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        text = text.replace("<|begin_of_text|>", "<|user|>")
        (folder / name).write_text(text.replace("<|end_of_text|>", "<|endoftext|>"))
    added = ["[gMASK]", "<|observation|>"]
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    last = sorted(vocabulary, key=vocabulary.__getitem__)[-len(added) :]
    ids = [vocabulary.pop(token) for token in last]
    merges = tokenizer["model"]["merges"]
    joined = [m.replace(" ", "") if isinstance(m, str) else "".join(m) for m in merges]
    tokenizer["model"]["merges"] = [
        m for m, token in zip(merges, joined, strict=True) if token not in last
    ]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    entries = [
        {"id": i, "content": token, **plain, "special": True}
        for token, i in zip(added, ids, strict=True)
    ]
    tokenizer["added_tokens"] = sorted(
        [*tokenizer["added_tokens"], *entries], key=lambda entry: int(entry["id"])
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for entry in entries:
        told = {key: value for key, value in entry.items() if key != "id"}
        settings["added_tokens_decoder"][str(entry["id"])] = told
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
