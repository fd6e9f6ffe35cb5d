"""How many layers go to the GPUs: as asked, or the most whose weights, cache and buffers fit."""

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from minitron_core.gguf import iterate_tensors, layer_bytes, open_shards
from minitron_engine.llama.context import ContextSettings
from minitron_engine.llama.devices import ALL_LAYERS, Device
from minitron_engine.llama.model import ModelSettings
from minitron_engine.memory.estimate import Needs, measure_needs
from minitron_engine.memory.placement import Placement

# what CUDA's context, its pools and fragmentation take besides all that is measured; llama.cpp's
# own fit keeps as much free on every device
MARGIN = 1 << 30
_GIB = 1 << 30


@dataclass(frozen=True)
class Choice:
    """Layers for the GPUs, the output counted as one more, how they are spread, and why so."""

    layers: int
    placement: Placement
    reason: str


def choose_layers(settings: ModelSettings, gpus: Sequence[Device]) -> Choice:
    """As many layers as asked for; for `auto`, llama.cpp is asked what a dry load would take.

    Errors: those of open_model and open_context.
    """
    wanted, placement = settings.gpu_layers, settings.placement
    if wanted != "auto":
        layers = ALL_LAYERS if wanted == "all" else wanted
        return Choice(layers, placement, f"--gpu-layers {wanted}")
    context = settings.context or ContextSettings(settings.n_ctx, min(settings.n_ctx, 2048))
    tensors = iterate_tensors(open_shards(settings.path))
    weights = layer_bytes((info.name, info.nbytes) for _, info in tensors)
    needs = measure_needs(settings.path, context, ALL_LAYERS, placement)
    buffers = [needs.buffer(gpu) for gpu in gpus]
    layers, spread = most_layers(weights, needs, buffers, gpus, placement)
    if 0 < layers < len(weights):
        # the rest on the CPU makes another graph, with other buffers
        divided = measure_needs(settings.path, context, layers, spread)
        buffers = [max(size, divided.buffer(gpu)) for size, gpu in zip(buffers, gpus, strict=True)]
        layers, spread = most_layers(weights, needs, buffers, gpus, placement)
    sizes = (sum(weights), needs.cache, sum(buffers), sum(gpu.free for gpu in gpus))
    told = "{:.1f} GiB of weights, {:.1f} of KV cache, {:.1f} of buffers; {:.1f} free".format(
        *(size / _GIB for size in sizes)
    )
    return Choice(ALL_LAYERS if layers == len(weights) else layers, spread, told)


def most_layers(
    weights: Sequence[int],
    needs: Needs,
    buffers: Sequence[int],
    gpus: Sequence[Device],
    placement: Placement,
) -> tuple[int, Placement]:
    """The most layers, counted from the output backwards, with which no GPU overflows.

    weights: bytes of each layer, the output last. buffers: those to compute with, of each GPU.
    Several GPUs get layers in proportion to the room they have, unless the placement says else.
    """
    cache = needs.cache / needs.layers
    sizes = [size + cache for size in weights[:-1]] + [float(weights[-1])]
    rooms = [max(gpu.free - MARGIN - size, 0) for gpu, size in zip(gpus, buffers, strict=True)]
    if len(gpus) > 1 and placement.split_mode == "layer" and not placement.tensor_split:
        if not sum(rooms):
            return 0, placement
        names = tuple(gpu.name for gpu in gpus)
        placement = replace(placement, names=names, tensor_split=tuple(map(float, rooms)))
    for count in range(len(sizes), 0, -1):
        loads = _loads(sizes[len(sizes) - count :], gpus, placement)
        if all(load <= room for load, room in zip(loads, rooms, strict=True)):
            return count, placement
    return 0, placement


def _loads(sizes: Sequence[float], gpus: Sequence[Device], placement: Placement) -> list[float]:
    """What each GPU gets of these layers: whole layers by llama.cpp's rule, or a share of each."""
    given = placement.tensor_split[: len(gpus)]
    shares = given if sum(given) else [gpu.free for gpu in gpus]
    total = sum(shares) or 1
    if placement.split_mode in ("row", "tensor"):
        return [sum(sizes) * share / total for share in shares]
    borders = [border / total for border in itertools.accumulate(shares)]
    loads = [0.0] * len(gpus)
    for number, size in enumerate(sizes):
        loads[min(bisect_right(borders, number / len(sizes)), len(gpus) - 1)] += size
    return loads
