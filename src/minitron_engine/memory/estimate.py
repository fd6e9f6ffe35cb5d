"""What a model takes in memory beside its weights: llama.cpp's own answer, nothing allocated."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minitron_core.errors import MinitronError
from minitron_engine.llama import log
from minitron_engine.llama.context import ContextSettings, open_context
from minitron_engine.llama.devices import ALL_LAYERS, Device
from minitron_engine.llama.model import measured_model
from minitron_engine.memory.placement import EVERY_GPU, Placement

_MIB = 1 << 20
_CACHE = re.compile(r"llama_(?:kv_cache|memory_recurrent): size = *([\d.]+) MiB")
_BUFFER = re.compile(r" (\S+) +(?:compute|output) buffer size = *([\d.]+) MiB")


@dataclass(frozen=True)
class Needs:
    """Bytes beside the weights: the KV cache of all layers, and the buffers to compute with.

    compute: all of the buffers, which `buffers` has by llama.cpp's names of where they are.
    """

    layers: int
    cache: int
    compute: int
    buffers: Mapping[str, int] = field(default_factory=dict)

    def buffer(self, device: Device) -> int:
        """Bytes of the buffers to compute with on one device."""
        # an RPC server's are named by its address, which is the description of its devices
        names = (device.name, f"[{device.description}]")
        return max((n for name, n in self.buffers.items() if name.endswith(names)), default=0)


def measure_needs(
    path: Path,
    settings: ContextSettings,
    layers: int = ALL_LAYERS,
    placement: Placement = EVERY_GPU,
) -> Needs:
    """What a context of these settings takes, from a dry load with so many layers on the GPUs.

    Without a GPU the buffers are those of the CPU: a GPU that holds all layers needs as much.
    Errors: those of open_model and open_context.
    """
    with (
        log.capture() as lines,
        measured_model(path, layers, placement) as model,
        open_context(model, settings),
    ):
        count = model.n_layers
    caches = [float(found[1]) for line in lines if (found := _CACHE.search(line))]
    buffers: dict[str, int] = {}
    for line in lines:
        if found := _BUFFER.search(line):
            buffers[found[1]] = buffers.get(found[1], 0) + round(float(found[2]) * _MIB)
    if not buffers:
        raise MinitronError(f"llama.cpp does not say what memory {path.name} takes")
    return Needs(count, round(sum(caches) * _MIB), sum(buffers.values()), buffers)
