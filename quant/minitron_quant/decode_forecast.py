"""How long this machine's processors take to run tokens through a model, before they do."""

import time
from collections.abc import Sequence

import numpy as np

from minitron_core.cpu_limits import default_threads
from minitron_core.gguf import Gguf
from minitron_quant.model_files import EMBEDDING, OUTPUT, tensors_of

# Operations of a float32 product of BLAS that take as long as one of llama.cpp's products, measured
# with 256 to 9,216 columns.
LLAMA_CPP = 2.3
_SAMPLE = 768


def operations_per_second() -> float:
    """Of a float32 product in one thread of this machine."""
    square = np.ones((_SAMPLE, _SAMPLE), np.float32)
    square @ square
    started = time.thread_time()
    square @ square
    return 2.0 * _SAMPLE**3 / max(time.thread_time() - started, 1e-6)


def decode_seconds(
    shards: Sequence[Gguf], tokens: float, outputs: float, threads: int | None = None
) -> float:
    """Seconds for so many tokens, many at a time; outputs: the share of them with logits."""
    products = 2.0 * tokens * _weights_per_token(shards, outputs) * LLAMA_CPP
    return products / (operations_per_second() * (threads or default_threads()))


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
