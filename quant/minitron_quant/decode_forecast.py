"""How long this machine's processors take to run tokens through a model, before they do."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from minitron_core.cpu_limits import default_threads
from minitron_core.gguf import Gguf
from minitron_engine.llama.product_speed import product_operations_per_second
from minitron_quant.model_files import EMBEDDING, OUTPUT, tensors_of

# Time of a decode beside that of its products alone, in small ones: norms, softmax, operands larger
# than caches. Measured with models of 8 million to 4.5 billion weights.
_BESIDE_PRODUCTS = 1.25
# where ggml's products cannot be measured
_OF_BLAS = 0.6
_SAMPLE = 768
_RUNS = 3  # the quickest counts: other programs only slow one down


def llama_cpp_operations_per_second() -> float:
    """Of llama.cpp's decodes, in one thread of this machine."""
    products = product_operations_per_second()
    return products / _BESIDE_PRODUCTS if products else _OF_BLAS * blas_operations_per_second()


def blas_operations_per_second() -> float:
    """Of numpy's float32 products, in one thread of this machine."""
    square = np.ones((_SAMPLE, _SAMPLE), np.float32)
    seconds = min(_product_seconds(square) for _ in range(_RUNS))
    return 2.0 * _SAMPLE**3 / max(seconds, 1e-6)


def _product_seconds(square: NDArray[np.float32]) -> float:
    started = time.thread_time()
    square @ square
    return time.thread_time() - started


def decode_seconds(
    shards: Sequence[Gguf],
    tokens: float,
    outputs: float,
    n_ctx: int = 512,
    threads: int | None = None,
) -> float:
    """Seconds for so many tokens in chunks of n_ctx; outputs: the share of them with logits."""
    each = 2.0 * _weights_per_token(shards, outputs) + attention_operations(shards, n_ctx)
    return tokens * each / (llama_cpp_operations_per_second() * (threads or default_threads()))


def attention_operations(shards: Sequence[Gguf], n_ctx: int) -> float:
    """Of one token: llama.cpp multiplies queries with the whole chunk, masked or not."""
    widths = (
        info.shape[0]
        for name, (_, info) in tensors_of(shards).items()
        if name.startswith("blk.") and name.endswith(".attn_output.weight")
    )
    return 4.0 * n_ctx * sum(widths)


def _weights_per_token(shards: Sequence[Gguf], outputs: float) -> float:
    """How many weights a token is multiplied with: of experts only those that it uses."""
    architecture, tensors = shards[0].get("general.architecture"), tensors_of(shards)
    count, used = (
        int(shards[0].get(f"{architecture}.{key}", 1) or 1)
        for key in ("expert_count", "expert_used_count")
    )
    total = outputs * tensors[OUTPUT if OUTPUT in tensors else EMBEDDING][1].n_elements
    for name, (_, info) in tensors.items():
        if name.startswith("blk.") and len(info.shape) > 1:
            total += info.n_elements * (used / count if len(info.shape) > 2 else 1)
    return total
