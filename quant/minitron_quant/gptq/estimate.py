"""What a quantization needs to know of a covariance without using it for the codes."""

from collections.abc import Sequence
from typing import Literal

from minitron_core.gguf import Gguf, KeyValue, ValueType
from minitron_quant.model_files import EMBEDDING, OUTPUT, tensors_of
from minitron_quant.quantize.importance import PlainCodes, weights_of_ones

Method = Literal["two-sided", "sequential", "independent"]


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


def planned_gptq(
    method: Method, texts: Sequence[str], shards: Sequence[Gguf], tokens: int = 0, block: int = 0
) -> PlainCodes:
    """What GPTQ with these texts will bring to a model's files, before codes are chosen.

    Metadata has its final size. Weights are ones, for the tensors that matrix products use.
    """
    tensors = tensors_of(shards)
    output = OUTPUT if OUTPUT in tensors else EMBEDDING
    # experts have three dimensions, and inputs of their own
    weights = {name: w for name, w in weights_of_ones(shards, output).items() if len(w) == 1}
    return PlainCodes(weights, gptq_keys(method, texts, tokens, block))
