"""Whole commands on damaged GGUF files, in a process whose end is seen."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from hardening.fuzz import formats, seeds
from hardening.fuzz.model_files import Opener
from hardening.fuzz.mutate import damage_bytes, either, number_fields
from hardening.fuzz.runner import Target
from minitron_cli import main as command_line
from minitron_core.errors import MinitronError
from minitron_core.gguf import F16, F32, GgufWriter, KeyValue, TensorSpec, ValueType
from minitron_quant.imatrix.files import write_imatrix
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix

_TEXT = "The old house stood at the end of the lane. " * 60
_HIDDEN, _FFN, _TOKENS = 32, 64, 3 + 256 + 5
_SIZES = {
    "block_count": 1,
    "context_length": 1024,
    "embedding_length": _HIDDEN,
    "feed_forward_length": _FFN,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "rope.dimension_count": _HIDDEN // 2,
    "vocab_size": _TOKENS,
}


def model(family: str = "llama") -> bytes:
    """A sound model with a vocabulary of bytes, which computes in a moment."""
    whole, real, text = ValueType.UINT32, ValueType.FLOAT32, ValueType.STRING
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "e",
        "t",
        "▁t",
        "h",
    ]
    types = np.array([2, 3, 3] + [6] * 256 + [1] * 5, np.int32)
    scores = -np.arange(_TOKENS, dtype=np.float32)
    epsilon = "layer_norm_rms_epsilon" if family == "llama" else "layer_norm_epsilon"
    keys = [
        KeyValue.of("general.architecture", text, family),
        KeyValue.of("general.name", text, "Small"),
        *(KeyValue.of(f"{family}.{key}", whole, value) for key, value in _SIZES.items()),
        KeyValue.of(f"{family}.attention.{epsilon}", real, 1e-5),
        KeyValue.of("general.file_type", whole, 1),
        KeyValue.of("general.quantization_version", whole, 2),
        KeyValue.of("tokenizer.ggml.model", text, "llama"),
        KeyValue.of("tokenizer.ggml.pre", text, "default"),
        KeyValue.of("tokenizer.ggml.tokens", ValueType.ARRAY, words),
        KeyValue.of("tokenizer.ggml.scores", ValueType.ARRAY, scores),
        KeyValue.of("tokenizer.ggml.token_type", ValueType.ARRAY, types),
        *(
            KeyValue.of(f"tokenizer.ggml.{name}_token_id", whole, i)
            for i, name in enumerate(("unknown", "bos", "eos"))
        ),
        KeyValue.of("tokenizer.chat_template", text, "{{ messages[0].content }}"),
    ]
    specs = _tensors(family)

    def write(path: Path) -> None:
        random = np.random.default_rng(5)
        with GgufWriter(path, keys, specs) as writer:
            for spec in specs:
                values = random.standard_normal(int(np.prod(spec.shape)), np.float32) * 0.1
                writer.write(values.astype(np.float16 if spec.type == F16 else np.float32))

    return seeds.written(write)


def _tensors(family: str) -> list[TensorSpec]:
    half = _HIDDEN // 2
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (_HIDDEN, _TOKENS),
        "output": (_HIDDEN, _TOKENS),
        "blk.0.attn_q": (_HIDDEN, _HIDDEN),
        "blk.0.attn_k": (_HIDDEN, half),
        "blk.0.attn_v": (_HIDDEN, half),
        "blk.0.attn_output": (_HIDDEN, _HIDDEN),
        "blk.0.ffn_up": (_HIDDEN, _FFN),
        "blk.0.ffn_down": (_FFN, _HIDDEN),
    }
    if family == "llama":
        shapes["blk.0.ffn_gate"] = (_HIDDEN, _FFN)
    found = [TensorSpec(f"{name}.weight", shape, F16) for name, shape in shapes.items()]
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        parts = ("weight",) if family == "llama" else ("weight", "bias")
        found += [TensorSpec(f"{name}.{part}", (_HIDDEN,), F32) for part in parts]
    return found


def models() -> list[bytes]:
    """One of each family."""
    return [model("llama"), model("nemotron")]


def matrices() -> list[bytes]:
    """Importance matrices of such a model, in both formats."""
    columns = {spec.name: spec.shape[0] for spec in _tensors("llama") if spec.name[:3] == "blk"}
    entries = {
        name: Entry(np.ones((1, count), np.float32), np.array([5]))
        for name, count in columns.items()
        if "norm" not in name
    }
    matrix = ImportanceMatrix(entries, ["text.txt"], 2, 32)
    return [
        seeds.written(lambda path, kind=kind: write_imatrix(path, matrix, kind))
        for kind in ("gguf", "dat")
    ]


class Left(MinitronError):
    """A command left with an exit code and one line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = code


@contextlib.contextmanager
def _spoken(path: Path) -> Iterator[None]:
    """What is written to the terminal goes to a file, also by llama.cpp."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(file)


def _run(folder: Path, *words: object) -> None:
    """Run a command as the console script does; Left where it fails as it should."""
    said = folder / "said.txt"
    arguments = ["minitron", *map(str, words)]
    with (
        mock.patch.object(sys, "argv", arguments),
        mock.patch.object(sys, "stdin", io.StringIO("Hello\n")),
        mock.patch("uvicorn.Server.run", lambda *_, **__: None),
        _spoken(said),
    ):
        try:
            command_line.main()
            code = 0
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    text = said.read_text(errors="replace")
    for wrong in ("Traceback", "this is a mistake in minitron", "GGML_ASSERT"):
        if wrong in text:
            raise AssertionError(f"exit code {code}: {text[-600:]}")
    if code:
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        if len(lines) != 1 or code not in range(1, 9):
            raise AssertionError(f"exit code {code} and {len(lines)} errors: {text[-300:]!r}")
        raise Left(code, lines[0])


def _command(words: tuple[str, ...], name: str, folder: Path) -> Opener:
    """A command on the input, which stands in its words as INPUT; MODEL is a sound one."""
    path, out = folder / name, folder / "out"
    (folder / "model.gguf").write_bytes(model()) if name != "model.gguf" else None
    (folder / "text.txt").write_text(_TEXT)
    (folder / "source").mkdir(exist_ok=True)
    places = {"INPUT": path, "MODEL": folder / "model.gguf", "TEXT": folder / "text.txt"}
    places |= {"OUT": out, "FILE": out / "file", "DIR": folder / "models"}
    (folder / "models").mkdir(exist_ok=True)
    if "DIR" in words:
        path = folder / "models" / name

    def open_input(data: bytes) -> None:
        path.write_bytes(data)
        out.mkdir(exist_ok=True)
        for old in out.iterdir():
            old.unlink()
        _run(folder, *(places.get(word, word) for word in words))
        partial_files = [*out.glob("*partial*"), *out.glob(".*partial")]
        assert not partial_files, partial_files

    return open_input


_GGUF = either(
    (4, number_fields(formats.gguf_numbers)),
    (3, number_fields(formats.gguf_fields)),
    (2, formats.move_entries),
    (1, damage_bytes),
)
_DAT = either((3, number_fields(formats.dat_fields)), (1, damage_bytes))
_QUICK = ("--chunks", "1", "--ctx", "32")
COMMANDS: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", "INPUT", "--tensors"),
    "inspect --json": ("inspect", "INPUT", "--json"),
    "advise": ("advise", "INPUT", "--vram", "1G", "--ctx", "64"),
    "card": ("card", "DIR"),
    "generate": ("generate", "INPUT", "The", "-n", "2", "--temp", "0", "--ctx", "64"),
    "chat": ("chat", "INPUT", "-n", "2", "--ctx", "64"),
    "ppl": ("ppl", "INPUT", "-f", "TEXT", *_QUICK),
    "ppl, a level": ("ppl", "INPUT", "--reference", "MODEL", "-f", "TEXT", *_QUICK),
    "ppl, a reference": ("ppl", "MODEL", "--reference", "INPUT", "-f", "TEXT", *_QUICK),
    "bench": ("bench", "INPUT", "-p", "4", "-n", "2", "-r", "1"),
    "serve": ("serve", "INPUT", "--port", "0", "--ctx", "64", "--parallel", "1"),
    "imatrix": ("imatrix", "INPUT", "-f", "TEXT", *_QUICK, "-o", "FILE"),
    "quantize": ("quantize", "INPUT", "Q8_0", "-d", "OUT"),
    "sensitivity": ("sensitivity", "INPUT", "-f", "TEXT", "--tokens", "512", "-o", "FILE"),
    "generate --lora": ("generate", "MODEL", "The", "-n", "1", "--lora", "INPUT", "--ctx", "64"),
}
ON_MATRICES: dict[str, tuple[str, ...]] = {
    "imatrix-stats": ("imatrix-stats", "INPUT"),
    "imatrix-merge": ("imatrix-merge", "INPUT", "INPUT", "-o", "FILE"),
    "quantize --imatrix": ("quantize", "MODEL", "Q4_0", "--imatrix", "INPUT", "-d", "OUT"),
}


def _target(name: str, words: tuple[str, ...], found: Callable[[], list[bytes]]) -> Target:
    file = "small-F16.gguf" if found is models else "file.imatrix"
    return Target(
        f"minitron {name}",
        found,
        _GGUF if found is models else _matrix_damage,
        partial(_command, words, file),
        spare=None,
        seconds=20,
        guarded=False,
        sound=False,
    )


def _matrix_damage(data: bytes, choose: Any) -> bytes:
    return (_GGUF if data[:4] == b"GGUF" else _DAT)(data, choose)


TARGETS = [
    *(_target(name, words, models) for name, words in COMMANDS.items()),
    *(_target(name, words, matrices) for name, words in ON_MATRICES.items()),
]
