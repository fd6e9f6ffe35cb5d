"""Tensors as they are written: read, changed and encoded piece by piece, ahead, on all cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from minitron_convert.checkpoint.tensor_ref import Array
from minitron_convert.encode import decode, encode, to_float
from minitron_convert.plan import PlannedTensor
from minitron_core.cpu_limits import default_threads
from minitron_core.errors import Damaged, Unsupported
from minitron_core.gguf import F16, Q8_0

PIECE_BYTES = 1 << 20  # what a core's cache holds, with the encoded rows

BYTES_PER_ELEMENT = 16  # as read, as float32, the steps of encoding, encoded


class Piece(NamedTuple):
    """Encoded rows of a tensor, in the order in which they are written."""

    tensor: PlannedTensor
    data: Array


def peak_memory(tensors: Sequence[PlannedTensor]) -> int:
    """An estimate in bytes of what `stream` holds at its peak: pieces in work and pieces done."""
    largest = max((_piece_elements(tensor) for tensor in tensors), default=0)
    return 3 * default_threads() * largest * BYTES_PER_ELEMENT


def stream(tensors: Sequence[PlannedTensor]) -> Iterator[Piece]:
    """The pieces of all tensors in order. Damaged: NaN or infinite weights, a file cut off."""
    workers = default_threads()
    ahead: deque[Future[Piece]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="convert") as pool:
        try:
            for job in _jobs(tensors):
                ahead.append(pool.submit(job))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _jobs(tensors: Sequence[PlannedTensor]) -> Iterator[partial[Piece]]:
    for tensor in tensors:
        source = tensor.source
        rows, many = source.rows, _piece_rows(tensor)
        for start in range(0, rows, many):
            yield partial(_piece, tensor, start, min(rows, start + many))


def _piece_rows(tensor: PlannedTensor) -> int:
    source = tensor.source
    return max(1, PIECE_BYTES // max(1, source.row_bytes * source.step)) * source.step


def _piece_elements(tensor: PlannedTensor) -> int:
    return min(tensor.source.rows, _piece_rows(tensor)) * tensor.source.row_elements


def _piece(tensor: PlannedTensor, start: int, stop: int) -> Piece:
    return Piece(tensor, encoded_rows(tensor, start, stop))


def encoded_rows(tensor: PlannedTensor, start: int, stop: int) -> Array:
    """Rows of a tensor in its type; both a multiple of the source's step.

    Damaged: values that are not finite; Unsupported: values beyond the type's range.
    """
    source, kind = tensor.source, tensor.spec.type
    data = source.read(start, stop)
    if source.dtype == "MXFP4":
        return data  # blocks as they are in the file
    _check_finite(source.name, data, source.dtype, start)
    encoded = encode(data, source.dtype, kind)
    if (kind == F16 and source.dtype != "F16") or kind == Q8_0:
        _check_range(source.name, encoded, kind)
    return encoded


def float_rows(tensor: PlannedTensor, start: int, stop: int) -> Array:
    """Rows of a tensor as float32, not encoded; both a multiple of the source's step."""
    data = tensor.source.read(start, stop)
    if tensor.source.dtype == "MXFP4":
        return decode(data, tensor.spec.type)
    return to_float(data, tensor.source.dtype).astype(np.float32, copy=False)


def _check_finite(name: str, data: Array, dtype: str, start: int) -> None:
    if dtype == "BF16":
        wrong = _magnitudes(data) >= np.uint16(0x7F80)
    elif data.dtype.kind == "f":
        wrong = ~np.isfinite(data)
    else:
        return
    if wrong.any():
        where = [int(i) for i in np.argwhere(wrong)[0]]
        where[0] += start
        raise Damaged(
            f"{name} holds values that are not finite, the first at {where}",
            "download the file again; if it is as published, the model is broken",
        )


def _check_range(name: str, encoded: Array, kind: int) -> None:
    """Finite values that a 16-bit float cannot hold must not become infinite unseen."""
    halves = encoded if kind == F16 else np.ascontiguousarray(encoded[:, :2])
    if (_magnitudes(halves.view(np.uint16)) >= np.uint16(0x7C00)).any():
        raise Unsupported(
            f"{name} holds values beyond the range of f16", "convert with --outtype bf16 or f32"
        )


def _magnitudes(bits: Array) -> Array:
    return bits & np.uint16(0x7FFF)
