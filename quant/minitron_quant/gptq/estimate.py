"""A covariance before it is collected: what a plan needs to know of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_core.gguf import Gguf, KeyValue, ValueType

_OUTPUTS = ("output.weight", "token_embd.weight")


def feedback_keys(texts: Sequence[str], tokens: int, block: int) -> tuple[KeyValue, ...]:
    """The metadata that tells how the codes were chosen."""
    numbers = {"tokens": tokens, "block": block}
    return (
        KeyValue.of("minitron.feedback.texts", ValueType.ARRAY, [*texts], ValueType.STRING),
        *(
            KeyValue.of(f"minitron.feedback.{key}", ValueType.UINT32, number)
            for key, number in numbers.items()
        ),
    )


@dataclass(frozen=True)
class PlannedFeedback:
    """What a covariance of these texts will bring to a model's files; only sizes are real."""

    texts: Sequence[str]
    shards: Sequence[Gguf]

    @property
    def keys(self) -> tuple[KeyValue, ...]:
        """Metadata as long as it will be."""
        return feedback_keys(self.texts, 0, 0)

    @property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Ones for the weights that products take: those of the layers, and of the output."""
        infos = {info.name: info for shard in self.shards for info in shard.tensors}
        output = next((name for name in _OUTPUTS if name in infos), "")
        return {
            name: np.ones((1, info.shape[0]), np.float32)
            for name, info in infos.items()
            # experts have three dimensions, and inputs of their own
            if len(info.shape) == 2
            and (name == output or (name.startswith("blk.") and name.endswith(".weight")))
        }
