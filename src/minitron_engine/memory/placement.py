"""Which devices a model may use, and how it is split between them."""

import ctypes
import math
from ctypes import c_void_p
from dataclasses import dataclass
from typing import Any, Literal

from minitron_core.errors import Usage
from minitron_engine.llama import devices
from minitron_engine.llama.binding import api
from minitron_engine.llama.library import registry

SplitMode = Literal["none", "layer", "row", "tensor"]
_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2, "tensor": 3}


@dataclass(frozen=True)
class Placement:
    """llama.cpp's own settings for several devices, by their names there.

    names: of the devices to use, in this order; none at all for the CPU alone; None for every GPU.
    tensor_split: shares of the devices, in any unit. main_gpu: the one that `none` splits to.
    """

    split_mode: SplitMode = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if any(not math.isfinite(share) or share < 0 for share in self.tensor_split):
            raise Usage("the shares of a tensor split are numbers of 0 or more")
        if len(self.tensor_split) > api.llama_max_devices():
            raise Usage(f"llama.cpp splits between at most {api.llama_max_devices()} devices")
        if self.tensor_split and not sum(self.tensor_split):
            raise Usage("a tensor split gives every device a share of 0")

    def chosen(self) -> list[devices.Device]:
        """The GPUs that layers may go to. Raises Usage for a name or a number that is none."""
        gpus = _in_order(devices.gpus())
        if self.names is not None:
            names = {gpu.name: gpu for gpu in gpus}
            for name in self.names:
                if name not in names:
                    raise Usage(
                        f"there is no device {name}",
                        f"the devices are {', '.join(names) or 'none but the CPU'}",
                    )
            gpus = [names[name] for name in self.names]
        if self.main_gpu and self.main_gpu >= len(gpus):
            raise Usage(f"there is no GPU {self.main_gpu}: there are {len(gpus)}, counted from 0")
        return gpus[self.main_gpu : self.main_gpu + 1] if self.split_mode == "none" else gpus

    def apply(self, parameters: Any) -> list[Any]:
        """Fill in llama.cpp's model parameters; returns what they point to, to be kept alive."""
        parameters.split_mode = _SPLIT_MODES[self.split_mode]
        parameters.main_gpu = self.main_gpu
        kept: list[Any] = []
        if self.tensor_split:
            shares = (ctypes.c_float * api.llama_max_devices())(*self.tensor_split)
            parameters.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
            kept.append(shares)
        if self.names is not None:
            find = registry().ggml_backend_dev_by_name
            handles = [find(name.encode()) for name in self.names]
            array = (c_void_p * (len(handles) + 1))(*handles, None)
            parameters.devices = ctypes.cast(array, c_void_p)
            kept.append(array)
        return kept


def _in_order(gpus: list[devices.Device]) -> list[devices.Device]:
    """llama.cpp's order: RPC servers first, so that the output is made here; igpus if need be."""
    remote = [gpu for gpu in gpus if gpu.name.startswith("RPC")]
    local = [gpu for gpu in gpus if not gpu.name.startswith("RPC")]
    return remote + ([gpu for gpu in local if gpu.kind == "gpu"] or local)


EVERY_GPU = Placement()
