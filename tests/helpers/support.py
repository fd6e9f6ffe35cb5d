"""Where the tests' data are."""

import ctypes
import fcntl
import json
import os
import pickle
import re
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlparse

from minitron_core.gguf import GgufWriter, KeyValue, TensorSpec, ValueType, open_gguf
from minitron_engine.llama import devices
from minitron_engine.llama.binding import api
from minitron_quant.imatrix.files import read_imatrix
from minitron_quant.levels import level_named, parse_levels
from minitron_quant.quantize.prepare import CodeRefiner, QuantizeSettings, prepare
from minitron_quant.quantize.run import LevelResult, run

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RECORDED = ROOT / "tests" / "data" / "llama_cpp"
T = TypeVar("T")
# values as Python writes them, which no message should have
PYTHON_REPR = re.compile(
    r"\b(None|True|False|NoneType|PosixPath)\b|\b(array|dtype)\(|[:(\[,=] ?b'|(?<!')[{\[]'"
    r"|<(class|function|module|object)\b|object at 0x|base 10"
)


class Served(NamedTuple):
    """A running server."""

    url: str
    process: "subprocess.Popen[str]"

    @property
    def address(self) -> tuple[str, int]:
        parts = urlparse(self.url)
        assert parts.hostname is not None and parts.port is not None
        return parts.hostname, parts.port

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")


def recorded(name: str) -> Any:
    """A recording of llama.cpp's own programs; see tests/data/llama_cpp/README.md."""
    return json.loads((RECORDED / name).read_text())


def beginning(folder: Path, size: int = 20_000) -> Path:
    """The first bytes of held-out.txt: a text that takes no time to cut into tokens."""
    text = folder / "beginning.txt"
    text.write_bytes((EXAMPLES / "held-out.txt").read_bytes()[:size])
    return text


def made_once(folder: Path, make: Callable[[Path], T]) -> T:
    """What `make` returns of a folder of the run; the first of the run's processes makes it.

    The processes of `pytest -n` have their folders side by side: what is costly they share above.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parents[2] / folder.name
    folder.mkdir(exist_ok=True)
    result = folder / "made.pickle"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            result.write_bytes(pickle.dumps(make(folder)))
    made: T = pickle.loads(result.read_bytes())
    return made


def quantize(
    source: Path, folder: Path, *levels: str, refiner: CodeRefiner | None = None, **more: Any
) -> dict[str, LevelResult]:
    """Levels of a model by name; `more` are further settings."""
    settings = QuantizeSettings(source, tuple(parse_levels(levels)), folder, **more)
    return {result.level: result for result in run(prepare(settings, refiner))}


def library_quantize(
    source: Path,
    target: Path,
    level: str,
    imatrix: Path | None,
    patterns: Sequence[tuple[str, int]] = (),
) -> None:
    """llama_model_quantize of the installed library, fed as llama-quantize feeds it.

    patterns: what a --tensor-type-file says, (regular expression, type).
    """
    devices.start()
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype = level_named(level).ftype
    entries = None
    if imatrix is not None:
        weights = read_imatrix(imatrix).weights()
        entries = (api.llama_model_imatrix_data * (len(weights) + 1))()
        for slot, (name, values) in zip(entries, weights.items(), strict=False):
            slot.name, slot.size = name.encode(), values.size
            slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = entries
    types = (api.llama_model_tensor_override * (len(patterns) + 1))()
    for wanted, (pattern, kind) in zip(types, patterns, strict=False):
        wanted.pattern, wanted.type = pattern.encode(), kind
    parameters.tt_overrides = types if patterns else None
    assert api.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(parameters)) == 0


class Ran:
    """What a command left: its exit code and both streams."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def fails(ran: Ran, code: int, *words: str) -> None:
    """One clear sentence on stderr, nothing on stdout, the contract's exit code."""
    assert ran.code == code, ran.err
    assert ran.out == ""
    lines = ran.err.strip().splitlines()
    assert lines[0].startswith("error: ") and len(lines) <= 2, ran.err
    assert "Traceback" not in ran.err
    assert not PYTHON_REPR.search(ran.err), ran.err
    for word in words:
        assert word in ran.err


def with_template(source: Path, target: Path, template: str) -> Path:
    """A copy of a model with a chat template in its metadata."""
    return with_entry(source, target, "tokenizer.chat_template", ValueType.STRING, template)


def with_entry(source: Path, target: Path, key: str, kind: ValueType, value: object) -> Path:
    """A copy of a model with one value of its metadata new or another one."""
    file = open_gguf(source)
    metadata = dict(file.metadata) | {key: KeyValue.of(key, kind, value)}
    specs = [TensorSpec(info.name, info.shape, info.type) for info in file.tensors]
    with GgufWriter(target, [*metadata.values()], specs) as writer:
        for info in file.tensors:
            writer.write(file.data(info))
    return target


Answers = list[tuple[str, int]]


def packed_choices(questions: list[tuple[str, Answers, Answers]]) -> bytes:
    """llama.cpp's binary file of multiple-choice questions: (text, answers, answers unused)."""

    def text(value: str) -> bytes:
        return struct.pack("<I", len(value.encode())) + value.encode()

    def answers(some: Answers) -> bytes:
        labels = struct.pack(f"<{len(some)}i", *(label for _, label in some))
        return struct.pack("<I", len(some)) + b"".join(text(t) for t, _ in some) + labels

    bodies = [text(q) + answers(first) + answers(second) for q, first, second in questions]
    start = 4 + 4 * len(bodies)
    offsets = [start + sum(map(len, bodies[:n])) for n in range(len(bodies))]
    return struct.pack(f"<{len(bodies) + 1}I", len(bodies), *offsets) + b"".join(bodies)
