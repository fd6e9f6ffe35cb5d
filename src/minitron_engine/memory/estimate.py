"""What a model takes in memory beside its weights, as llama.cpp itself says it, without allocating.

A dry load without weights makes llama.cpp log the sizes of its KV cache and of its buffers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minitron_core.errors import MinitronError, NotFound
from minitron_engine.llama import devices, log
from minitron_engine.llama.context import open_context
from minitron_engine.llama.devices import Device
from minitron_engine.llama.model import open_without_weights
from minitron_engine.llama.settings import ALL_LAYERS, ContextSettings, Offload

_MIB = 1 << 20
_CACHE = re.compile(r"llama_(?:kv_cache|memory_recurrent): size = *([\d.]+) MiB")
_BUFFER = re.compile(r" (\S+) +(?:compute|output) buffer size = *([\d.]+) MiB")
_EVERY_LAYER = Offload(ALL_LAYERS)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes beside the weights: the KV cache of all layers, and the compute buffers.

    compute: the sum of the buffers; `buffers` has each by llama.cpp's name of its place.
    """

    layers: int
    cache: int
    compute: int
    buffers: Mapping[str, int] = field(default_factory=dict)

    def buffer(self, device: Device) -> int:
        """Bytes of the compute buffers on one device."""
        # an RPC server's are named by its address, which is the description of its devices
        names = (device.name, f"[{device.description}]")
        return max((n for name, n in self.buffers.items() if name.endswith(names)), default=0)


def estimate_memory(
    path: Path, settings: ContextSettings, offload: Offload = _EVERY_LAYER
) -> MemoryEstimate:
    """What a context of these settings takes, with so many layers on the GPUs.

    Without a GPU the buffers are those of the CPU: a GPU that holds all layers needs as much.
    Errors: those of open_model and open_context.
    """
    devices.start()
    if not path.is_file():
        raise NotFound(f"{path} does not exist")
    with (
        log.capture() as lines,
        open_without_weights(path, offload) as model,
        open_context(model, settings),
    ):
        count = model.n_layers
    caches = [float(found[1]) for line in lines if (found := _CACHE.search(line))]
    buffers: dict[str, int] = {}
    for line in lines:
        if found := _BUFFER.search(line):
            buffers[found[1]] = buffers.get(found[1], 0) + round(float(found[2]) * _MIB)
    if not buffers:
        raise MinitronError(f"llama.cpp does not say how much memory {path.name} takes")
    return MemoryEstimate(count, round(sum(caches) * _MIB), sum(buffers.values()), buffers)
