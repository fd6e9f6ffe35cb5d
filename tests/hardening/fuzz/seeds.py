"""Sound files, as small as they can be: what damage begins with."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hardening.fuzz.formats import message
from helpers import synthetic_checkpoints as synthetic
from helpers.torch_archive import ORDERED, Global, Reduce, pickled, tensor, write_torch
from minitron_convert.vocab.pretokenizers import KNOWN
from minitron_core.gguf import F16, F32, TYPE_ID, GgufWriter, KeyValue, TensorSpec, ValueType
from minitron_quant.imatrix.files import write_imatrix
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix
from minitron_quant.mixed_precision.sensitivity_file import (
    Sensitivity,
    TensorSensitivity,
    write_sensitivity,
)
from minitron_quant.provenance import CalibrationOrigin

SMALL = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def written(write: Callable[[Path], object]) -> bytes:
    """The bytes of the file that `write` makes."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "file"
        write(path)
        return path.read_bytes()


def as_json(value: object) -> bytes:
    """A document."""
    return json.dumps(value).encode()


def config(name: str) -> dict[str, Any]:
    """The config of a synthetic variant with a model of few numbers."""
    found = synthetic.make_config(name)
    return found | SMALL | ({"head_dim": 4} if "head_dim" in found else {})


def configs() -> list[bytes]:
    """Configs of all families and rotary settings."""
    names = ("llama-tied", "llama-yarn", "llama-wide-heads", "mistral", "nemotron-f16")
    return [as_json(config(name)) for name in (*names, "nemotron-linear", "nemotron-wide")]


def safetensors() -> list[bytes]:
    """A model's file, one of every data type, one with an empty tensor."""
    shapes = synthetic.make_shapes(config("llama-tied"))  # of the first config

    def write(shapes: dict[str, tuple[int, ...]], dtype: str) -> bytes:
        names = sorted(shapes)
        return written(lambda path: synthetic.write_safetensors(path, shapes, names, dtype))

    some = {"a": (2, 3), "b": (0, 4), "c": ()}
    return [write(shapes, "F16"), write(some, "F32"), write({"x.weight": (4,)}, "BF16")]


def index() -> list[bytes]:
    """The index of the two shards that `parts` gives."""
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    return [as_json({"metadata": {"total_size": 32}, "weight_map": weight_map})]


def parts() -> dict[str, bytes]:
    """The shards of an index."""
    return {
        f"model-{i}.safetensors": written(
            lambda path, name=name: synthetic.write_safetensors(path, {name: (2, 2)}, [name], "F32")
        )
        for i, name in ((1, "a"), (2, "b"))
    }


def torch_archives() -> list[bytes]:
    """State dictionaries: plain, with shared storages and parameters, empty."""
    plain = {"a": tensor("FloatStorage", "0", (2, 3)), "b": tensor("HalfStorage", "1", (4,))}
    shared = {
        "x": tensor("BFloat16Storage", "0", (2, 2), numel=8, offset=4),
        "y": Reduce(
            Global("torch._utils", "_rebuild_parameter"),
            (tensor("BFloat16Storage", "0", (4,), numel=8), True, ORDERED),
        ),
    }
    return [
        written(lambda path: write_torch(path, pickled(plain), {"0": bytes(24), "1": bytes(8)})),
        written(lambda path: write_torch(path, pickled(shared), {"0": bytes(16)})),
        written(lambda path: write_torch(path, pickled({}), {})),
    ]


def tokenizers() -> list[bytes]:
    """tokenizer.json: byte-level with merges of both forms, single digits, pieces with bytes."""
    expression = next(steps[0] for (steps, _), name in KNOWN.items() if name == "llama-bpe")
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    words = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "abc", "Ġ", "Ġa"]
    vocab = {word: i for i, word in enumerate(words)}
    added = [{"id": i, "content": words[i], "special": True} for i in range(3)]
    post = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
        "pair": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
    }

    def document(pre: object, post: object, **model: Any) -> bytes:
        return as_json(
            {
                "added_tokens": added,
                "normalizer": None,
                "pre_tokenizer": pre,
                "post_processor": post,
                "model": {"type": "BPE", "vocab": vocab, "unk_token": "<unk>", **model},
            }
        )

    both = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}]
    pieces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
    ends = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, post]}
    return [
        document(
            {"type": "Sequence", "pretokenizers": [split, level]},
            ends,
            ignore_merges=True,
            merges=["a b", "ab c"],
        ),
        document({"type": "Sequence", "pretokenizers": both}, None, merges=[["a", "b"]]),
        document(pieces, post, byte_fallback=True, merges=["a b"]),
    ]


def tokenizer_settings() -> dict[str, bytes]:
    """The files beside a tokenizer."""
    settings = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "add_bos_token": True,
        "chat_template": "{{ messages }}",
        "added_tokens_decoder": {"11": {"content": "<x>", "special": True}},
    }
    return {
        "tokenizer_config.json": as_json(settings),
        "generation_config.json": as_json({"temperature": 0.5, "eos_token_id": [2, 5]}),
    }


def sentencepieces() -> list[bytes]:
    """tokenizer.model: a BPE model with every kind of piece, a unigram one without a normalizer."""
    texts = [(b"<unk>", 2), (b"<s>", 3), (b"</s>", 3), (b"<0x0A>", 6), ("▁a".encode(), 1)]
    texts += [(b"b", 1), (b"<x>", 4)]
    pieces = [
        (1, message((1, text), (2, -float(i)), (3, kind))) for i, (text, kind) in enumerate(texts)
    ]
    trainer, normalizer = message((3, 2), (4, 7)), message((1, b"identity"), (3, 0))
    return [message(*pieces, (2, trainer), (3, normalizer)), message(*pieces[:3])]


def gguf_values() -> list[KeyValue]:
    """A key of every kind."""
    array = np.arange(4, dtype=np.float32)
    return [
        KeyValue.of("general.architecture", ValueType.STRING, "llama"),
        KeyValue.of("general.alignment", ValueType.UINT32, 32),
        KeyValue.of("llama.rope.freq_base", ValueType.FLOAT32, 1e4),
        KeyValue.of("a.flag", ValueType.BOOL, True),
        KeyValue.of("a.count", ValueType.UINT64, 2**40),
        KeyValue.of("a.small", ValueType.INT8, -1),
        KeyValue.of("tokenizer.ggml.tokens", ValueType.ARRAY, ["a", "b", "ü"]),
        KeyValue.of("tokenizer.ggml.scores", ValueType.ARRAY, array),
        KeyValue.of("tokenizer.chat_template", ValueType.STRING, "{{ messages }}"),
        KeyValue("a.nested", ValueType.ARRAY, bytes(_nested())),
        KeyValue.of("general.file_type", ValueType.UINT32, 1),
    ]


def _nested() -> bytes:
    inner = (5).to_bytes(4, "little") + (1).to_bytes(8, "little") + bytes(4)
    return (9).to_bytes(4, "little") + (2).to_bytes(8, "little") + inner * 2


def ggufs() -> list[bytes]:
    """Files with all kinds of keys and several tensors, with keys alone, with tensors alone."""
    specs = [
        TensorSpec("token_embd.weight", (8, 4), F16),
        TensorSpec("blk.0.attn_q.weight", (32, 2), 8),
        TensorSpec("blk.0.ffn_up_exps.weight", (4, 2, 3), F32),
        TensorSpec("output_norm.weight", (8,), F32),
    ]

    def write(path: Path, keys: list[KeyValue], tensors: list[TensorSpec]) -> None:
        with GgufWriter(path, keys, tensors) as writer:
            for spec in tensors:
                writer.write(bytes(spec.nbytes))

    keys = gguf_values()
    return [
        written(lambda path: write(path, keys, specs)),
        written(lambda path: write(path, keys[:3], [])),
        written(lambda path: write(path, [], specs[:1])),
    ]


def matrix() -> ImportanceMatrix:
    """Dense and expert entries with totals and an origin."""
    entries = {
        "blk.0.attn_q.weight": Entry(np.ones((1, 8), np.float32), np.array([5])),
        "blk.1.attn_q.weight": Entry(
            np.ones((1, 8), np.float32), np.array([5]), np.ones((1, 8), np.float64)
        ),
        "blk.0.ffn_up_exps.weight": Entry(np.ones((2, 4), np.float32), np.array([3, 0])),
    }
    origin = CalibrationOrigin("f" * 64, ("a" * 64,))
    return ImportanceMatrix(entries, ["text.txt"], 2, 512, origin)


def imatrices(file_format: str) -> list[bytes]:
    """One file with all that ours tell, one with what llama-imatrix tells."""
    return [
        written(lambda path: write_imatrix(path, matrix(), file_format)),
        written(lambda path: write_imatrix(path, matrix().plain(), file_format)),
    ]


def sensitivities() -> list[bytes]:
    """A measured model of two tensors."""
    names = {"name": "x", "sha256": "0" * 64}
    tensor = TensorSensitivity({TYPE_ID["q4_K"]: 0.5, TYPE_ID["q8_0"]: 0.1}, 0.4, {32: 0.1}, [1, 2])
    found = {"blk.0.ffn_up.weight": tensor, "blk.0.ffn_down.weight": tensor}
    sensitivity = Sensitivity(names, names, names, 512, "q4_K", found, True, "CPU")
    return [written(lambda path: write_sensitivity(path, sensitivity))]


def bombs(archives: list[bytes]) -> list[bytes]:
    """Archives with a compressed entry, small in the file and large beside it."""
    found = []
    for archive in archives:
        out = io.BytesIO(archive)
        with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as more:
            more.writestr("model/extra", bytes(10_000))
        found.append(out.getvalue())
    return found
