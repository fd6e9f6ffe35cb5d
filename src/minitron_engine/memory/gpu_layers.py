"""How many layers go to the GPUs: as given, or the most whose weights, cache and buffers fit."""

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from minitron_core.gguf import iterate_tensors, layer_bytes, open_shards
from minitron_engine.llama.devices import Device
from minitron_engine.llama.settings import (
    ALL_LAYERS,
    ContextSettings,
    ModelSettings,
    Offload,
    Placement,
)
from minitron_engine.memory.estimate import MemoryEstimate, estimate_memory

# what CUDA's context, its pools and fragmentation take besides all that is measured; llama.cpp's
# own fit keeps as much free on every device
MARGIN = 1 << 30
_GIB = 1 << 30


def choose_layers(settings: ModelSettings, gpus: Sequence[Device]) -> Offload:
    """As many layers as the settings say; for `auto`, the most that fit by llama.cpp's own sizes.

    Errors: those of open_model and open_context.
    """
    asked, placement = settings.gpu_layers, settings.placement
    if asked != "auto":
        layers = ALL_LAYERS if asked == "all" else asked
        return Offload(layers, placement, f"--gpu-layers {asked}")
    context = settings.context or ContextSettings(settings.n_ctx, min(settings.n_ctx, 2048))
    tensors = iterate_tensors(open_shards(settings.path))
    weights = layer_bytes((info.name, info.nbytes) for _, info in tensors)
    needed = estimate_memory(settings.path, context, Offload(ALL_LAYERS, placement))
    buffers = [needed.buffer(gpu) for gpu in gpus]
    layers, spread = most_layers(weights, needed, buffers, gpus, placement)
    if 0 < layers < len(weights):
        # the rest on the CPU makes another graph, with other buffers
        divided = estimate_memory(settings.path, context, Offload(layers, spread))
        buffers = [max(size, divided.buffer(gpu)) for size, gpu in zip(buffers, gpus, strict=True)]
        layers, spread = most_layers(weights, needed, buffers, gpus, placement)
    sizes = (sum(weights), needed.cache, sum(buffers), sum(gpu.free for gpu in gpus))
    reason = "{:.1f} GiB of weights, {:.1f} of KV cache, {:.1f} of buffers; {:.1f} free".format(
        *(size / _GIB for size in sizes)
    )
    return Offload(ALL_LAYERS if layers == len(weights) else layers, spread, reason)


def most_layers(
    weights: Sequence[int],
    needed: MemoryEstimate,
    buffers: Sequence[int],
    gpus: Sequence[Device],
    placement: Placement,
) -> tuple[int, Placement]:
    """The most layers, counted from the output backwards, with which no GPU overflows.

    weights: bytes of each layer, the output last. buffers: bytes of each GPU's compute buffers.
    Several GPUs get layers in proportion to their free memory, unless the placement has shares.
    """
    cache = needed.cache / needed.layers
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
