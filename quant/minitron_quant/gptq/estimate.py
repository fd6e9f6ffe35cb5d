"""What a quantization needs to know of a covariance without using it for the codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from minitron_core.gguf import Gguf, KeyValue, ValueType
from minitron_quant.array_backend import Floats
from minitron_quant.model_files import EMBEDDING, OUTPUT, tensors_of

Method = Literal["sequential", "independent"]


def gptq_keys(
    method: Method, texts: Sequence[str], tokens: int, block: int
) -> tuple[KeyValue, ...]:
    """The metadata that records how GPTQ chose the codes."""
    numbers = {"tokens": tokens, "block": block}
    return (
        KeyValue.of("minitron.gptq.method", ValueType.STRING, method),
        KeyValue.of("minitron.gptq.texts", ValueType.ARRAY, [*texts], ValueType.STRING),
        *(
            KeyValue.of(f"minitron.gptq.{key}", ValueType.UINT32, number)
            for key, number in numbers.items()
        ),
    )


@dataclass(frozen=True)
class PlainCodes:
    """A quantize.prepare.CodeRefiner that leaves ggml's codes: importance and metadata only."""

    weights: Mapping[str, Floats]
    keys: tuple[KeyValue, ...] = ()
    notes: tuple[str, ...] = ()
    file: Path | None = None
    warning: str = ""
    rows: int = 1

    def of(self, _name: str) -> None:
        """No tensor is refined."""


def planned_gptq(
    method: Method, texts: Sequence[str], shards: Sequence[Gguf], tokens: int = 0, block: int = 0
) -> PlainCodes:
    """What GPTQ with these texts will bring to a model's files, before codes are chosen.

    Metadata has its final size. Weights are ones, for the tensors that matrix products use.
    """
    tensors = tensors_of(shards)
    output = OUTPUT if OUTPUT in tensors else EMBEDDING
    weights = {
        name: np.ones((1, info.shape[0]), np.float32)
        for name, (_, info) in tensors.items()
        # experts have three dimensions, and inputs of their own
        if len(info.shape) == 2
        and (name == output or (name.startswith("blk.") and name.endswith(".weight")))
    }
    return PlainCodes(weights, gptq_keys(method, texts, tokens, block))
