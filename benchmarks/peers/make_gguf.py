"""A GGUF file of Llama-3.1-Minitron-4B-Width's layer shapes with random weights, to quantize.

    python benchmarks/peers/make_gguf.py width4.gguf --layers 4 --vocabulary 128256

Weights are normal with a standard deviation of 0.02 in f16, written slab by slab. An importance
matrix of the same shapes goes beside it (width4.imatrix.gguf). Both cannot generate: there is no
vocabulary; they are for quantizers only. --sparse writes no weights, for a plan.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minitron_core.gguf import (
    F16,
    F32,
    GgufWriter,
    KeyValue,
    TensorSpec,
    ValueType,
    encode_header,
    file_size,
)
from minitron_quant.imatrix.files import write_imatrix
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix

HIDDEN, FFN, HEADS, KV_HEADS, HEAD = 3072, 9216, 32, 8, 128
SLAB = 1 << 24


def metadata(layers: int, vocabulary: int) -> list[KeyValue]:
    """What llama.cpp's quantizer needs to know of a Llama model."""
    numbers: dict[str, Any] = {
        "block_count": layers,
        "context_length": 131072,
        "embedding_length": HIDDEN,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "rope.dimension_count": HEAD,
        "vocab_size": vocabulary,
    }
    return [
        KeyValue.of("general.architecture", ValueType.STRING, "llama"),
        *(KeyValue.of(f"llama.{k}", ValueType.UINT32, v) for k, v in numbers.items()),
        KeyValue.of("llama.attention.layer_norm_rms_epsilon", ValueType.FLOAT32, 1e-5),
        KeyValue.of("general.file_type", ValueType.UINT32, 1),
        KeyValue.of("tokenizer.ggml.model", ValueType.STRING, "no_vocab"),
    ]


def tensors(layers: int, vocabulary: int) -> Iterator[TensorSpec]:
    """Names and shapes as the converter writes them; norms are f32."""
    yield TensorSpec("output.weight", (HIDDEN, vocabulary), F16)
    yield TensorSpec("token_embd.weight", (HIDDEN, vocabulary), F16)
    yield TensorSpec("output_norm.weight", (HIDDEN,), F32)
    for layer in range(layers):
        shapes = {
            "attn_k": (HIDDEN, KV_HEADS * HEAD),
            "attn_norm": (HIDDEN,),
            "attn_output": (HEADS * HEAD, HIDDEN),
            "attn_q": (HIDDEN, HEADS * HEAD),
            "attn_v": (HIDDEN, KV_HEADS * HEAD),
            "ffn_down": (FFN, HIDDEN),
            "ffn_gate": (HIDDEN, FFN),
            "ffn_norm": (HIDDEN,),
            "ffn_up": (HIDDEN, FFN),
        }
        for name, shape in shapes.items():
            kind = F32 if "norm" in name else F16
            yield TensorSpec(f"blk.{layer}.{name}.weight", shape, kind)


def write_model(path: Path, keys: list[KeyValue], specs: list[TensorSpec], sparse: bool) -> None:
    """The model, with weights or without."""
    if sparse:
        with path.open("wb") as file:
            file.write(encode_header(keys, specs))
            file.truncate(file_size(keys, specs))
        return
    random = np.random.default_rng(0)
    with GgufWriter(path, keys, specs) as writer:
        for spec in specs:
            left = int(np.prod(spec.shape))
            dtype = np.float16 if spec.type == F16 else np.float32
            while left:
                values = 0.02 * random.standard_normal(min(left, SLAB), dtype=np.float32)
                writer.write(values.astype(dtype).tobytes())
                left -= values.size


def write_importance(path: Path, specs: list[TensorSpec]) -> None:
    """Random mean squares for every matrix of the layers."""
    random = np.random.default_rng(1)
    entries = {
        spec.name: Entry(
            random.gamma(1.0, 1.0, (1, spec.shape[0])).astype(np.float32), np.array([1])
        )
        for spec in specs
        if spec.name.startswith("blk.") and spec.type == F16
    }
    write_imatrix(path, ImportanceMatrix(entries, ["random"], 1, 512))


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--sparse", action="store_true")
    arguments = parser.parse_args()
    specs = list(tensors(arguments.layers, arguments.vocabulary))
    keys = metadata(arguments.layers, arguments.vocabulary)
    write_model(arguments.path, keys, specs, arguments.sparse)
    write_importance(arguments.path.with_suffix(".imatrix.gguf"), specs)


if __name__ == "__main__":
    main()
