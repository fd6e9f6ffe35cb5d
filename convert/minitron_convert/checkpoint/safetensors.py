"""The header of a safetensors file: eight bytes of length, JSON, then the tensors' bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minitron_convert.checkpoint.json_files import parse_object
from minitron_convert.checkpoint.tensor_ref import DTYPES, ForeignTensorRef, TensorRef
from minitron_core.errors import Damaged, from_os_error
from minitron_core.lfs_pointer import refuse_lfs_pointer

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_DIMENSIONS = 64  # the limit of numpy
_POINTER_BYTES = 200  # more than a Git LFS pointer's first line has


def read_header(path: Path) -> list[TensorRef]:
    """The tensors of a file, sorted by name. NotFound, Denied, Damaged."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            refuse_lfs_pointer(path, file.read(_POINTER_BYTES))
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise Damaged(
                    f"{path} is cut off: {size} bytes do not hold its header of {length} bytes",
                    "download it again",
                )
            header = parse_object(file.read(length), path, unique=True)
    except OSError as error:
        raise from_os_error(error, path, "read") from error
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = [_tensor(path, name, header[name], start) for name in sorted(header)]
    _check_ranges(path, tensors, size)
    return tensors


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorRef:
    damaged = Damaged(f"{path} describes {name} wrongly", "download it again")
    if not isinstance(entry, dict):
        raise damaged
    dtype: Any
    shape: Any
    offsets: Any
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise damaged
    if not isinstance(dtype, str) or len(shape) > MAX_DIMENSIONS:
        raise damaged
    if dtype not in DTYPES:
        size = max(0, offsets[1] - offsets[0])
        return ForeignTensorRef(name, tuple(shape), dtype, path, start + offsets[0], size)
    tensor = TensorRef(name, tuple(shape), dtype, path, start + offsets[0])
    if tensor.nbytes != offsets[1] - offsets[0]:
        raise damaged
    return tensor


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**62 for item in value
    )


def _check_ranges(path: Path, tensors: list[TensorRef], size: int) -> None:
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset < end:
            raise Damaged(f"{path}: {tensor.name} overlaps another tensor", "download it again")
        end = tensor.offset + tensor.nbytes
        if end > size:
            raise Damaged(
                f"{path} is cut off: {tensor.name} ends at byte {end} of {size}",
                "download it again",
            )
