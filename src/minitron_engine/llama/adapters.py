"""LoRA adapters: low-rank changes to a model's weights, each with a scale."""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minitron_core.errors import Damaged, NotFound
from minitron_engine.llama import log
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import Context


@dataclass(frozen=True)
class Adapter:
    """An adapter's GGUF file; with it the weights are W + scale · alpha / rank · B·A."""

    path: Path
    scale: float = 1.0


def apply_adapters(context: Context, adapters: Sequence[Adapter]) -> None:
    """Load adapters and use them in a context; they live as long as its model.

    Raises NotFound, and Damaged with llama.cpp's reason for an adapter of another model.
    """
    if not adapters:
        return
    handles = (api.llama_adapter_lora_p_ctypes * len(adapters))()
    for index, adapter in enumerate(adapters):
        if not adapter.path.is_file():
            raise NotFound(f"{adapter.path} does not exist")
        handle = api.llama_adapter_lora_init(context.model.handle, os.fsencode(adapter.path))
        if not handle:
            raise Damaged(
                f"{adapter.path.name} cannot be used with {context.model.path.name}: "
                f"{log.last_error() or 'no reason given'}"
            )
        handles[index] = handle
    scales = (ctypes.c_float * len(adapters))(*(adapter.scale for adapter in adapters))
    api.llama_set_adapters_lora(context.handle, handles, len(adapters), scales)
