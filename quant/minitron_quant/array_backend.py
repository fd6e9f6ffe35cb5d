"""Arrays: names of their types, and the module that computes with them, numpy or torch on a GPU.

Code takes the module as an argument: both have the few functions that it needs, named alike.
"""

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Arrays:
    """A module of array functions, and one of its devices.

    rows: of a weight, processed together. cells: of a table, searched at a time. Both are sized to
    fit the caches, or to keep a GPU busy.
    """

    module: ModuleType
    device: str = "cpu"
    rows: int = 512
    cells: int = 1 << 18

    def active(self) -> AbstractContextManager[Any]:
        """A context in which the module creates arrays on the device."""
        return nullcontext() if self.module is np else self.module.device(self.device)

    def put(self, values: NDArray[Any]) -> Any:
        """A copy of the values as an array of the module, on the device."""
        return self.module.asarray(values, device=self.device, copy=True)

    def memory_limit(self, requested: int) -> int:
        """How many of the requested bytes sums may take: on a GPU, at most half of what is free."""
        if self.device == "cpu":
            return requested
        return min(requested, int(self.module.cuda.mem_get_info(self.device)[0]) // 2)


NUMPY = Arrays(np)


def torch_arrays(device: str) -> Arrays:
    """torch on one of its devices; ImportError if it is not installed."""
    import torch

    return Arrays(torch, device, rows=8192, cells=1 << 26)


@cache
def best_arrays() -> Arrays:
    """torch if it is installed and has a GPU, numpy otherwise."""
    if importlib.util.find_spec("torch") is None:
        return NUMPY
    on_gpu = torch_arrays("cuda")
    return on_gpu if on_gpu.module.cuda.is_available() else NUMPY


def to_numpy(values: Any) -> NDArray[Any]:
    """An array of either module as a numpy array."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()
