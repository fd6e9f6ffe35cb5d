"""A GGUF file of a Llama model too small to say anything, with random weights, to quantize."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minitron_core.gguf import F16, F32, GgufWriter, KeyValue, TensorSpec, ValueType

HIDDEN, FFN, VOCABULARY, LAYERS = 256, 512, 512, 2


def write_tiny(path: Path, experts: int = 0) -> Path:
    """Write it; with `experts` its feed-forward tensors have one matrix for each."""
    numbers: dict[str, Any] = {
        "block_count": LAYERS,
        "context_length": 512,
        "embedding_length": HIDDEN,
        "feed_forward_length": FFN,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.dimension_count": HIDDEN // 4,
        "vocab_size": VOCABULARY,
    }
    if experts:
        numbers |= {"expert_count": experts, "expert_used_count": 2}
    keys = [
        KeyValue.of("general.architecture", ValueType.STRING, "llama"),
        *(KeyValue.of(f"llama.{k}", ValueType.UINT32, v) for k, v in numbers.items()),
        KeyValue.of("llama.attention.layer_norm_rms_epsilon", ValueType.FLOAT32, 1e-5),
        KeyValue.of("general.file_type", ValueType.UINT32, 1),
        KeyValue.of("tokenizer.ggml.model", ValueType.STRING, "no_vocab"),
    ]
    random = np.random.default_rng(5)
    specs = list(_tensors(experts))
    with GgufWriter(path, keys, specs) as writer:
        for spec in specs:
            values = random.standard_normal(int(np.prod(spec.shape)), np.float32)
            writer.write(values.astype(np.float16 if spec.type == F16 else np.float32))
    return path


def _tensors(experts: int) -> Iterator[TensorSpec]:
    yield TensorSpec("token_embd.weight", (HIDDEN, VOCABULARY), F16)
    yield TensorSpec("output_norm.weight", (HIDDEN,), F32)
    for layer in range(LAYERS):
        for name, shape in _layer(experts).items():
            kind = F32 if "norm" in name or "gate_inp" in name else F16
            yield TensorSpec(f"blk.{layer}.{name}.weight", shape, kind)


def _layer(experts: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (HIDDEN, HIDDEN // 2),
        "attn_v": (HIDDEN, HIDDEN // 2),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_norm": (HIDDEN,),
    }
    if not experts:
        up, down = (HIDDEN, FFN), (FFN, HIDDEN)
        return shapes | {"ffn_gate": up, "ffn_up": up, "ffn_down": down}
    ups, downs = (HIDDEN, FFN, experts), (FFN, HIDDEN, experts)
    shapes["ffn_gate_inp"] = (HIDDEN, experts)
    return shapes | {"ffn_gate_exps": ups, "ffn_up_exps": ups, "ffn_down_exps": downs}
