"""A tensor of a checkpoint: where its bytes are; nothing is read until asked."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minitron_core.errors import Damaged, Unsupported, from_os_error

Array = npt.NDArray[Any]

# bf16 and FP8 have no numpy type: they are read as their bits.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("<i1"),
    "U8": np.dtype("<u1"),
    "F8_E4M3": np.dtype("<u1"),
}


@dataclass(frozen=True)
class TensorRef:
    """A tensor stored row by row at `offset` of `path`; `dtype` as safetensors names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    offset: int

    @property
    def n_elements(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.n_elements * DTYPES[self.dtype].itemsize

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows `start` to `stop` of the first dimension. Damaged if the file ends before."""
        rows = self.shape[0] if self.shape else 1
        stop = rows if stop is None else stop
        dtype = DTYPES[self.dtype]
        row = prod(self.shape[1:])
        data = np.empty((stop - start) * row, dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + start * row * dtype.itemsize)
                view = data.data.cast("B") if data.nbytes else memoryview(b"")
                while view.nbytes:
                    count = file.readinto(view)
                    if not count:
                        raise Damaged(f"{self.path} ends within {self.name}", "download it again")
                    view = view[count:]
        except OSError as error:
            raise from_os_error(error, self.path, "read") from error
        return data.reshape(stop - start, *self.shape[1:]) if self.shape else data.reshape(())


@dataclass(frozen=True)
class ForeignTensorRef(TensorRef):
    """A tensor that cannot be read, such as a mask of type BOOL: no weights of a model are so.

    `stored` is its size in bytes in the file, `problem` why, if not for its data type.
    """

    stored: int
    problem: str = ""

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.stored

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Unsupported, always."""
        raise self.refusal()

    def refusal(self) -> Unsupported:
        """The error where the tensor is needed."""
        problem = self.problem or f"has the data type {self.dtype}"
        return Unsupported(
            f"{self.path}: {self.name} {problem}; a weight can be {', '.join(DTYPES)}",
            "give the checkpoint that was trained, not a quantized one",
        )
