"""The bit fields of quantized blocks: numbers of a few bits, read and written as arrays.

Layouts: block_* of ggml-common.h (llama.cpp 0c1e57098), as the decoders of ggml-quants.c read them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from minitron_quant.array_backend import Bytes, Ints
from minitron_quant.kernels.gptq import write_field


@dataclass(frozen=True)
class Plane:
    """Some bits of some numbers: word k of the words from byte `start` on holds number items[k].

    bits: how many, from `shift` on in the word; they are bits `at` and up of the number.
    word: bytes of a word, little-endian. stride: bytes from one word to the next, 0 for no gap.
    """

    start: int
    items: tuple[int, ...]
    bits: int
    shift: int = 0
    at: int = 0
    word: int = 1
    stride: int = 0


Field = tuple[Plane, ...]


def read(blocks: Bytes, field: Field) -> Ints:
    """The numbers of a field in every block [blocks, bytes]: [blocks, numbers]."""
    count = 1 + max(max(plane.items) for plane in field)
    numbers = np.zeros((len(blocks), count), np.int32)
    for plane in field:
        words = _words(blocks, plane)
        bits = (words >> plane.shift) & ((1 << plane.bits) - 1)
        numbers[:, list(plane.items)] |= (bits << plane.at).astype(np.int32)
    return numbers


def write(blocks: Bytes, field: Field, numbers: Ints) -> None:
    """Write the numbers [blocks, numbers] of a field; all other bits stay."""
    if write_field(blocks, _parts(field), numbers):
        return
    for plane in field:
        mask = (1 << plane.bits) - 1
        words = _words(blocks, plane)
        bits = (numbers[:, list(plane.items)] >> plane.at).astype(np.int64) & mask
        words = (words & ~(mask << plane.shift)) | (bits << plane.shift)
        for byte in range(plane.word):
            blocks[:, _bytes_of(plane, byte)] = (words >> (8 * byte)) & 0xFF


@cache
def _parts(field: Field) -> Ints:
    """Every part of every number, as the compiled library takes them."""
    return np.array(
        [
            (item, plane.start + k * (plane.stride or plane.word), *bits)
            for plane in field
            for bits in [(plane.word, plane.bits, plane.shift, plane.at)]
            for k, item in enumerate(plane.items)
        ],
        np.int32,
    )


def _words(blocks: Bytes, plane: Plane) -> NDArray[np.int64]:
    words = np.zeros((len(blocks), len(plane.items)), np.int64)
    for byte in range(plane.word):
        words |= blocks[:, _bytes_of(plane, byte)].astype(np.int64) << (8 * byte)
    return words


def _bytes_of(plane: Plane, byte: int) -> slice:
    first = plane.start + byte
    stride = plane.stride or plane.word
    return slice(first, first + stride * (len(plane.items) - 1) + 1, stride)


def spread(
    start: int, slots: Sequence[Sequence[int]], bits: int, at: int = 0, shift: int = 0
) -> Field:
    """Planes that share their bytes: slot k of each, `bits` wide, holds the items slots[k]."""
    return tuple(
        Plane(start, tuple(items), bits, shift + bits * k, at) for k, items in enumerate(slots)
    )
