"""Recipes: mixes of types besides llama.cpp's levels, their names, texts and metadata.

The text of a recipe is a --tensor-type-file of llama-quantize: one PATTERN=TYPE for each tensor.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from minitron_core.gguf import TYPE, KeyValue, TensorInfo, ValueType
from minitron_quant.levels import LEVEL_KEY, LEVELS, Level

# metadata keys of a recipe's file
RECIPE_KEY, PREDICTED_KEY = "minitron.recipe", "minitron.predicted_kld"


@dataclass(frozen=True)
class Recipe(Level):
    """A level of our own. types: (tensor, ggml id), of the tensors that have a choice.

    predicted: the divergence from the full model, in nats per token.
    """

    types: tuple[tuple[str, int], ...] = ()
    predicted: float = 0.0

    @property
    def patterns(self) -> tuple[tuple[str, int], ...]:
        """(regular expression, type) of each tensor, as --tensor-type takes them."""
        return tuple((f"^{re.escape(name)}$", ggml_type) for name, ggml_type in self.types)

    @property
    def text(self) -> str:
        """The content of a --tensor-type-file."""
        return "".join(
            f"{pattern}={TYPE[ggml_type].name}\n" for pattern, ggml_type in self.patterns
        )

    @property
    def keys(self) -> tuple[KeyValue, ...]:
        """The metadata that records how the file was made."""
        return (
            KeyValue.of(LEVEL_KEY, ValueType.STRING, self.name),
            KeyValue.of(RECIPE_KEY, ValueType.STRING, self.text),
            KeyValue.of(PREDICTED_KEY, ValueType.FLOAT32, self.predicted),
        )


def make_recipe(
    types: Mapping[str, int], tensors: Mapping[str, TensorInfo], predicted: float
) -> Recipe:
    """A recipe for a model, named after its bits per weight over all tensors."""
    elements = {name: info.n_elements for name, info in tensors.items()}
    bits = {name: bits_of(types.get(name, info.type)) for name, info in tensors.items()}
    mean = sum(bits[name] * elements[name] for name in tensors) / sum(elements.values())
    return Recipe(
        name=f"{mean:.2f}bpw",
        ftype=_nearest_ftype(types, elements),
        bits=mean,
        types=tuple(types.items()),
        predicted=predicted,
    )


def bits_of(ggml_type: int) -> float:
    """Bits per weight of a type."""
    return 8 * TYPE[ggml_type].block_bytes / TYPE[ggml_type].block_elements


def _nearest_ftype(types: Mapping[str, int], elements: Mapping[str, int]) -> int:
    """general.file_type: the level whose type most of the weights have.

    Q4_K_M if there is none; llama-quantize needs a level, and follows the patterns.
    """
    weights = Counter[int]()
    for name, ggml_type in types.items():
        weights[ggml_type] += elements[name]
    most = TYPE[weights.most_common(1)[0][0]].name.upper()
    preferred = (f"{most}_M", most)
    by_name = {level.name: level.ftype for level in LEVELS}
    return next((by_name[name] for name in preferred if name in by_name), by_name["Q4_K_M"])
