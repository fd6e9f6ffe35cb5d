"""Which layer a tensor belongs to, by llama.cpp's names: blk.7.attn_q.weight."""

import re
from collections.abc import Iterable

_LAYER = re.compile(r"blk\.(\d+)\.")


def layer_number(name: str) -> int | None:
    """The layer of a tensor; None for tensors outside the layers."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def in_layer(name: str, layer: int | str) -> str:
    """The name of the same tensor in another layer; `*` matches any."""
    return _LAYER.sub(f"blk.{layer}.", name, count=1)


def layer_bytes(tensors: Iterable[tuple[str, int]]) -> list[int]:
    """Bytes of each layer's weights, and last those of the output, from (name, bytes) pairs.

    The embedding stays on the CPU; it counts as the output where the model has no other.
    """
    layers: dict[int, int] = {}
    rest: dict[str, int] = {}
    for name, size in tensors:
        layer = layer_number(name)
        if layer is None:
            rest[name] = size
        else:
            layers[layer] = layers.get(layer, 0) + size
    embedding = rest.pop("token_embd.weight", 0)
    output = sum(rest.values()) + (0 if "output.weight" in rest else embedding)
    return [*(layers[number] for number in sorted(layers)), output]
