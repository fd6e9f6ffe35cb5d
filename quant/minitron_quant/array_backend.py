"""Where heavy arithmetic runs: numpy, or torch on a GPU, as an argument of one and the same code.

Both modules have the few functions that it needs under the same names.
"""

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Arrays:
    """A module of array functions, and on which of its devices.

    rows: of a weight that are worked on together. cells: of a table that is made and searched at a
    time. Both are what the caches hold, or what keeps a GPU busy.
    """

    module: ModuleType
    device: str = "cpu"
    rows: int = 512
    cells: int = 1 << 18

    def active(self) -> AbstractContextManager[Any]:
        """Inside of it the module makes new arrays on the device."""
        return nullcontext() if self.module is np else self.module.device(self.device)

    def put(self, values: NDArray[Any]) -> Any:
        """A copy of the values as an array of the module, on the device."""
        return self.module.asarray(values, device=self.device, copy=True)

    def room(self, wanted: int) -> int:
        """How many bytes of those wanted sums may take: on a GPU, half of what is free."""
        if self.device == "cpu":
            return wanted
        return min(wanted, int(self.module.cuda.mem_get_info(self.device)[0]) // 2)


NUMPY = Arrays(np)


def torch_arrays(device: str) -> Arrays:
    """torch on one of its devices; ImportError where it is not installed."""
    import torch

    return Arrays(torch, device, rows=8192, cells=1 << 26)


@cache
def best_arrays() -> Arrays:
    """torch where it is installed and has a GPU, numpy elsewhere."""
    if importlib.util.find_spec("torch") is None:
        return NUMPY
    on_gpu = torch_arrays("cuda")
    return on_gpu if on_gpu.module.cuda.is_available() else NUMPY


def to_numpy(values: Any) -> NDArray[Any]:
    """An array of either module as one of numpy."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()
