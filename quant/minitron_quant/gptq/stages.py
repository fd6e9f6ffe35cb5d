"""The stages of a layer: weights that share an input, in the order in which their codes are chosen.

Names are those of the layer's file (minitron_quant.streaming): blk.0. in every layer.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from minitron_quant.streaming.layer_model import AFTER_ATTENTION, AFTER_LAYER

# the states that go into the layer
BEFORE_LAYER = "states"
_INPUTS = (
    ("attn_q", "attn_k", "attn_v", "attn_qkv"),
    ("attn_output",),
    ("ffn_gate", "ffn_up"),
    ("ffn_down",),
)
# what the product of a weight is added to, and the sum
_RESIDUAL = {
    "attn_output": (BEFORE_LAYER, AFTER_ATTENTION),
    "ffn_down": (AFTER_ATTENTION, AFTER_LAYER),
}


@dataclass(frozen=True)
class Stage:
    """weights: names, the first of which stands for their input.

    residual: the states that their product is added to, if it is; after: their sum.
    """

    weights: tuple[str, ...]
    residual: str = ""
    after: str = ""

    @property
    def input(self) -> str:
        """The weight that stands for the input."""
        return self.weights[0]

    @property
    def wanted(self) -> tuple[str, ...]:
        """What the layer is run for: the input, and the residual states where it computes them."""
        computed = (self.residual,) if self.residual not in ("", BEFORE_LAYER) else ()
        return (*computed, self.input)


def stages_of(names: Collection[str], output: str = "") -> list[Stage]:
    """The stages of a layer with these tensors; output: the matrix that follows the last layer."""
    found = []
    for kinds in _INPUTS:
        weights = tuple(w for kind in kinds if (w := f"blk.0.{kind}.weight") in names)
        if weights:
            found.append(Stage(weights, *_RESIDUAL.get(kinds[0], ())))
    return [*found, Stage((output,))] if output else found


def kept_columns(
    stages: Sequence[Stage], columns: Mapping[str, int], width: int, levels: int
) -> int:
    """How many numbers per token of the current layer are kept, on all sides.

    columns: of the input of each weight. Of the full model all inputs and the states between, of
    a level the input of the last product and the states that it is added to.
    """
    inputs = [columns[stage.input] for stage in stages]
    return sum(inputs) + width + levels * (inputs[-1] + width)
