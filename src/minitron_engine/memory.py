"""What a model takes in memory beside its weights: llama.cpp's own answer, nothing allocated."""

import re
from dataclasses import dataclass
from pathlib import Path

from minitron_engine import log
from minitron_engine.context import ContextSettings, open_context
from minitron_engine.errors import MinitronError
from minitron_engine.model import measured_model

_MIB = 1 << 20
_CACHE = re.compile(r"llama_kv_cache: size = *([\d.]+) MiB")
_BUFFER = re.compile(r" (compute|output) buffer size = *([\d.]+) MiB")


@dataclass(frozen=True)
class Needs:
    """Bytes beside the weights: the KV cache of all layers, and the buffers to compute with."""

    layers: int
    cache: int
    compute: int


def measure_needs(path: Path, settings: ContextSettings) -> Needs:
    """What a context of these settings takes, from a dry load of the model.

    The buffers are those of a graph on one device: a GPU that holds all layers needs as much.
    Errors: those of open_model and open_context.
    """
    with (
        log.capture() as lines,
        measured_model(path) as model,
        open_context(model, settings),
    ):
        layers = model.n_layers
    caches = [float(found[1]) for line in lines if (found := _CACHE.search(line))]
    buffers = [float(found[2]) for line in lines if (found := _BUFFER.search(line))]
    if not caches or not buffers:
        raise MinitronError(f"llama.cpp does not say what memory {path.name} takes")
    return Needs(layers, round(sum(caches) * _MIB), round(sum(buffers) * _MIB))
