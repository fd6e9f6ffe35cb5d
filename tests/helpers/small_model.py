"""A model with a vocabulary that takes a hundredth of nano-llama's work: for what takes minutes."""

from pathlib import Path

import numpy as np

from minitron_core.gguf import GgufWriter, KeyValue, TensorSpec, ValueType, open_gguf
from minitron_core.gguf.layers import in_layer

TOKENS, FFN = 512, 256
_SPECIAL = 2  # begin and end of a text, the last tokens


def write_small(nano_llama: Path, path: Path) -> Path:
    """nano-llama's first block with a third of its FFN, and the tokens of its first merges."""
    file = open_gguf(nano_llama)
    kept = np.r_[: TOKENS - _SPECIAL, -_SPECIAL:0]
    tokens, kinds = (file.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    merges = file.get("tokenizer.ggml.merges")
    bytes_and_special = len(tokens) - len(merges)
    strings = {
        "tokens": [tokens[number] for number in kept],
        "merges": merges[: TOKENS - bytes_and_special],
    }
    numbers = {
        "llama.block_count": 1,
        "llama.feed_forward_length": FFN,
        "llama.vocab_size": TOKENS,
        "tokenizer.ggml.bos_token_id": TOKENS - 2,
        "tokenizer.ggml.eos_token_id": TOKENS - 1,
    }
    metadata = dict(file.metadata)
    for key, number in numbers.items():
        metadata[key] = KeyValue.of(key, ValueType.UINT32, number)
    for name, values in strings.items():
        key = f"tokenizer.ggml.{name}"
        metadata[key] = KeyValue.of(key, ValueType.ARRAY, values, ValueType.STRING)
    key = "tokenizer.ggml.token_type"
    metadata[key] = KeyValue.of(key, ValueType.ARRAY, kinds[kept], ValueType.INT32)
    arrays = {}
    for info in file.tensors:
        if info.name.startswith("blk.") and not info.name.startswith("blk.0."):
            continue
        kind = np.float32 if info.type == 0 else np.float16
        values = file.data(info).view(kind).reshape(info.shape[::-1])
        if info.name in ("output.weight", "token_embd.weight"):
            values = values[kept]
        elif info.name.endswith(("ffn_gate.weight", "ffn_up.weight")):
            values = values[:FFN]
        elif info.name.endswith("ffn_down.weight"):
            values = np.ascontiguousarray(values[:, :FFN])
        arrays[info.name] = (values, info.type)
    specs = [TensorSpec(name, values.shape[::-1], kind) for name, (values, kind) in arrays.items()]
    with GgufWriter(path, [*metadata.values()], specs) as writer:
        for values, _ in arrays.values():
            writer.write(values)
    return path


def write_two_layers(nano_llama: Path, path: Path) -> Path:
    """The small model with its layer twice: enough to go from one to the next."""
    small = open_gguf(write_small(nano_llama, path.with_name("small.gguf")))
    entries = dict(small.metadata)
    entries["llama.block_count"] = KeyValue.of("llama.block_count", ValueType.UINT32, 2)
    tensors = [(info.name, info) for info in small.tensors]
    tensors += [(in_layer(name, 1), info) for name, info in tensors if name.startswith("blk.")]
    specs = [TensorSpec(name, info.shape, info.type) for name, info in tensors]
    with GgufWriter(path, [*entries.values()], specs) as writer:
        for _, info in tensors:
            writer.write(small.data(info))
    return path
