"""Files of checkpoints and models: what opens them, their seeds, their damage."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hardening.fuzz import formats, seeds
from hardening.fuzz.json_values import damage_json
from hardening.fuzz.mutate import Mutator, damage_bytes, either, number_fields
from hardening.fuzz.runner import Target
from helpers.tiny_checkpoints import description, make_checkpoint, source_tensors
from minitron_convert.checkpoint.folder import open_checkpoint
from minitron_convert.checkpoint.safetensors import read_header
from minitron_convert.checkpoint.tensor_ref import TensorRef
from minitron_convert.checkpoint.torch_file import read_pickle
from minitron_convert.plan import ConvertSettings, plan
from minitron_core.gguf import TYPE_ID, open_gguf, open_shards
from minitron_quant.imatrix.files import read_imatrix
from minitron_quant.imatrix.statistics import layer_statistics, weight_statistics
from minitron_quant.inspect.description import describe
from minitron_quant.mixed_precision.sensitivity_file import read_sensitivity

Opener = Callable[[bytes], object]


def mostly(structured: Mutator) -> Mutator:
    """Structured damage three times in four, blind damage otherwise."""
    return either((3, structured), (1, damage_bytes))


def through(name: str, read: Callable[[Path], object], folder: Path) -> Opener:
    """Write an input under a name, and read it."""
    path = folder / name

    def open_input(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return open_input


def _read_all(tensors: list[TensorRef]) -> list[int]:
    return [tensor.read().size for tensor in tensors]


def _index(folder: Path) -> Opener:
    for name, data in seeds.parts().items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text("{}")
    name = "model.safetensors.index.json"
    return through(name, lambda _: open_checkpoint(folder).tensors, folder)


def _plan(name: str, folder: Path) -> Opener:
    """Plan the conversion of a folder of which one file is the input."""
    files = {"tokenizer.json": seeds.tokenizers()[0], "config.json": seeds.configs()[0]}
    files |= {"model.safetensors": seeds.safetensors()[0]} | seeds.tokenizer_settings()
    # a whole tokenizer.json would stand in for a tokenizer.model that is damaged
    left_out = {name, "tokenizer.json"} if name == "tokenizer.model" else {name}
    for file, data in files.items():
        if file not in left_out:
            (folder / file).write_bytes(data)
    output = folder / "out.gguf"

    def both(_: Path) -> None:
        plan(ConvertSettings(folder, output, vocab_only=True))
        if name == "config.json":
            plan(ConvertSettings(folder, output))

    return through(name, both, folder)


def _make_tiny(name: str, folder: Path) -> Path:
    """A tiny checkpoint with a few words: what reads tokenizer.json has a target of its own."""
    words, small = description(name)["config"]["vocab_size"], seeds.SMALL["vocab_size"]
    shapes = {
        tensor: (dtype, tuple(small if size == words else size for size in shape))
        for tensor, (dtype, shape) in source_tensors(name).items()
    }
    made = make_checkpoint(name, folder, {"vocab_size": small}, shapes)
    words_of = {"tokenizer.json": seeds.tokenizers()[0]} | seeds.tokenizer_settings()
    for file, data in words_of.items():
        (made / file).write_bytes(data)
    return made


def _tiny(name: str, *, header: bool) -> Callable[[], list[bytes]]:
    """A tiny checkpoint's config, or the header of its weights."""

    def read() -> list[bytes]:
        with tempfile.TemporaryDirectory() as place:
            folder = _make_tiny(name, Path(place))
            weights = (folder / "model.safetensors").read_bytes()
            end = 8 + int.from_bytes(weights[:8], "little")
            return [weights[8:end] if header else (folder / "config.json").read_bytes()]

    return read


def _plan_tiny(name: str, folder: Path) -> Opener:
    """Plan the conversion of a tiny checkpoint whose config is the input."""
    made = _make_tiny(name, folder)
    settings = ConvertSettings(made, folder / "out.gguf")
    return through("config.json", lambda _: plan(settings), made)


def _plan_header(name: str, folder: Path) -> Opener:
    """Plan the conversion of a tiny checkpoint whose header of weights is the input."""
    made = _make_tiny(name, folder)
    settings = ConvertSettings(made, folder / "out.gguf")
    path = made / "model.safetensors"
    size = path.stat().st_size

    def open_input(data: bytes) -> object:
        path.write_bytes(len(data).to_bytes(8, "little") + data)
        os.truncate(path, size + len(data))  # the weights themselves are not read
        return plan(settings)

    return open_input


def _gguf(path: Path) -> object:
    file = open_gguf(path)
    values = [entry.value for entry in file.metadata.values()]
    read = [int(file.data(info).sum()) for info in file.tensors]
    return values, read, describe(path, with_tensors=True), open_shards(path)


def _imatrix(path: Path) -> object:
    matrix = read_imatrix(path)
    rows = weight_statistics(matrix)
    return matrix.weights(), layer_statistics(rows)


def _sensitivity(path: Path) -> object:
    found = read_sensitivity(path)
    types = dict.fromkeys(found.tensors, TYPE_ID["q4_K"])
    return found.predict(types), found.error, found.chunks


# state-space layers, experts and a layer of further tokens; blocks of their own; packed experts
_FAMILIES = ("nemotron-3-super-120b", "nemotron-super-49b", "gpt-oss")

TARGETS = [
    Target(
        "safetensors",
        seeds.safetensors,
        mostly(formats.damage_safetensors),
        partial(through, "model.safetensors", lambda path: _read_all(read_header(path))),
    ),
    *(
        Target(
            f"config.json of {name}",
            _tiny(name, header=False),
            mostly(damage_json),
            partial(_plan_tiny, name),
        )
        for name in _FAMILIES
    ),
    *(
        Target(
            f"header of {name}",
            _tiny(name, header=True),
            mostly(damage_json),
            partial(_plan_header, name),
        )
        for name in _FAMILIES
    ),
    Target("index.json", seeds.index, mostly(damage_json), _index),
    Target(
        "config.json",
        seeds.configs,
        mostly(damage_json),
        partial(_plan, "config.json"),
        sound=False,  # the weights are those of the first
    ),
    Target(
        "tokenizer.json", seeds.tokenizers, mostly(damage_json), partial(_plan, "tokenizer.json")
    ),
    Target(
        "tokenizer.model",
        seeds.sentencepieces,
        mostly(formats.damage_message),
        partial(_plan, "tokenizer.model"),
    ),
    Target(
        "torch .bin",
        lambda: seeds.torch_archives() + seeds.bombs(seeds.torch_archives()),
        mostly(formats.damage_torch),
        partial(through, "pytorch_model.bin", lambda path: _read_all(read_pickle(path))),
    ),
    Target(
        "GGUF",
        seeds.ggufs,
        either(
            (3, number_fields(formats.gguf_fields)), (1, formats.move_entries), (1, damage_bytes)
        ),
        partial(through, "model.gguf", _gguf),
    ),
    Target(
        "imatrix GGUF",
        lambda: seeds.imatrices("gguf"),
        either(
            (3, number_fields(formats.gguf_fields)), (1, formats.move_entries), (1, damage_bytes)
        ),
        partial(through, "imatrix.gguf", _imatrix),
    ),
    Target(
        "imatrix .dat",
        lambda: seeds.imatrices("dat"),
        mostly(number_fields(formats.dat_fields)),
        partial(through, "imatrix.dat", _imatrix),
    ),
    Target(
        "sensitivity file",
        seeds.sensitivities,
        mostly(damage_json),
        partial(through, "s.json", _sensitivity),
    ),
]
