"""The model families, by the class name that a checkpoint's config gives in `architectures`."""

from __future__ import annotations

from collections.abc import Callable

from minitron_convert.architectures.base import Family, ModelTensor
from minitron_convert.architectures.llama import Llama
from minitron_convert.architectures.mistral import Mistral
from minitron_convert.architectures.nemotron import Nemotron
from minitron_convert.architectures.wide_nemotron import WideNemotron
from minitron_convert.checkpoint import Checkpoint
from minitron_convert.errors import Damaged, Unsupported


def _nemotron(checkpoint: Checkpoint) -> Family:
    """Nemotron, by the shape of its heads."""
    family = Nemotron(checkpoint)
    square = family.size.attention == family.size.hidden
    return family if square else WideNemotron(checkpoint)


FAMILIES: dict[str, Callable[[Checkpoint], Family]] = {
    "LlamaForCausalLM": Llama,
    "LLaMAForCausalLM": Llama,
    "MistralForCausalLM": Mistral,
    "NemotronForCausalLM": _nemotron,
}

__all__ = ["FAMILIES", "Family", "ModelTensor", "find_family"]


def find_family(checkpoint: Checkpoint) -> Family:
    """The family of an opened checkpoint. Unsupported if its class is not registered."""
    where = checkpoint.folder / "config.json"
    names = checkpoint.config.get("architectures")
    if not isinstance(names, list) or not names:
        raise Damaged(f"{where} does not name its architecture (key: architectures).")
    family = FAMILIES.get(str(names[0]))
    if family is None:
        raise Unsupported(
            f"{where} is of the architecture {names[0]}, which is not supported.",
            f"Supported are {', '.join(FAMILIES)}.",
        )
    if checkpoint.config.get("quantization_config"):
        raise Unsupported(
            f"{where} belongs to a quantized checkpoint.", "Give the one that was trained."
        )
    return family(checkpoint)
