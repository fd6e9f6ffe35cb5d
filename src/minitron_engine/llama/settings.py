"""What a model and a context are opened with: plain settings, which load nothing of llama.cpp."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minitron_core.errors import Usage

GpuLayers = int | Literal["auto", "all"]
SplitMode = Literal["none", "layer", "row", "tensor"]
ALL_LAYERS = 999  # more than any model has

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
# the types that llama.cpp's tools accept for the KV cache, by their ggml ids
CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q4_0": 2,
    "q4_1": 3,
    "iq4_nl": 20,
    "q5_0": 6,
    "q5_1": 7,
}

# how the vectors of a text's tokens become one, by llama.cpp's numbers
POOLING = {"mean": 1, "cls": 2, "last": 3}


@dataclass(frozen=True)
class Placement:
    """How llama.cpp splits a model between devices, with its own names for them.

    names: the devices to use, in this order; an empty tuple is the CPU alone, None every GPU.
    tensor_split: shares of the devices, in any unit. main_gpu: the one that `none` uses.
    Raises Usage for shares that are negative, not finite, or all zero.
    """

    split_mode: SplitMode = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if any(not math.isfinite(share) or share < 0 for share in self.tensor_split):
            raise Usage("the shares of a tensor split are numbers of 0 or more")
        if self.tensor_split and not sum(self.tensor_split):
            raise Usage("a tensor split gives every device a share of 0")


EVERY_GPU = Placement()


@dataclass(frozen=True)
class Offload:
    """How many layers go to GPUs (the output counts as one more), their placement, and why."""

    layers: int = 0
    placement: Placement = EVERY_GPU
    reason: str = ""


@dataclass(frozen=True)
class ContextSettings:
    """n_ctx is the size of the whole KV cache, shared by n_seq sequences; sizes in tokens.

    unified: sequences take what they need and may share tokens; otherwise each has an even part.
    n_outputs: the most rows of logits of one decode, at least n_seq; it bounds their memory.
    threads: None for as many as this process may use. pooling: compute an embedding of a sequence,
    pooled this way, and no logits.
    """

    n_ctx: int
    n_batch: int
    n_ubatch: int = 512
    n_seq: int = 1
    unified: bool = False
    n_outputs: int | None = None
    threads: int | None = None
    flash_attention: str = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    pooling: str | None = None


@dataclass(frozen=True)
class ModelSettings:
    """Which file to load, and where to.

    gpu_layers: `auto` offloads what fits beside the KV cache and the buffers of `context`, or of
    a plain context of n_ctx tokens where it is None.
    replaceable: laid out as in the file, so that other weights can take the place of its own for a
    while. writable: that, in memory of its own, so that they can be overwritten.
    """

    path: Path
    gpu_layers: GpuLayers = "auto"
    n_ctx: int = 4096
    vocab_only: bool = False
    replaceable: bool = False
    writable: bool = False
    placement: Placement = EVERY_GPU
    context: ContextSettings | None = None
