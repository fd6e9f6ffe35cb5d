"""Damage at any place of a file, or at its numbers; all of it reproducible."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random

Mutator = Callable[[bytes, Random], bytes]
Field = tuple[int, int]  # offset and size of a little-endian number
Fields = Callable[[bytes], Sequence[Field]]

NUMBERS = (0, 1, 2, 3, 7, 8, 9, 12, 31, 63, 64, 100, 127, 128, 255, 256, 1000, 4096, 65535)
NUMBERS += (10**6, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**61, 2**62, 2**63 - 1)
NUMBERS += (2**63, 2**64 - 1, 2**64 - 8, 2**64 - 32)
LARGEST = 1 << 18  # bytes of an input: what grows by repetition grows no further
_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")


def spread(data: bytes, choose: Random) -> tuple[int, int]:
    """A random stretch of the data, usually short."""
    start = choose.randrange(len(data) + 1)
    longest = choose.choice((1, 2, 4, 8, 16, 64, len(data)))
    return start, min(len(data), start + choose.randint(0, longest))


def damage_bytes(data: bytes, choose: Random) -> bytes:
    """Bits flipped, bytes cut, repeated, inserted, numbers overwritten."""
    kind = choose.randrange(7)
    start, end = spread(data, choose)
    if kind == 0 and data:
        flipped = bytearray(data)
        for _ in range(choose.choice((1, 1, 2, 8))):
            flipped[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        return bytes(flipped)
    if kind == 1:
        return data[:start]
    if kind == 2:
        return data[:start] + data[end:]
    if kind == 3:
        times = choose.choice((1, 2, 3, 50))
        return data[:end] + data[start:end] * times + data[end:]
    if kind == 4:
        return data[:start] + choose.randbytes(choose.choice((1, 2, 4, 8, 32))) + data[start:]
    if kind == 5:
        size = choose.choice((1, 2, 4, 8))
        return with_number(data, (min(start, max(0, len(data) - size)), size), choose)
    other, stop = spread(data, choose)
    return data[:start] + data[other:stop] + data[end:]


def with_number(data: bytes, field: Field, choose: Random) -> bytes:
    """The data with a number replaced: by its neighbour, a limit, or the size of the file."""
    offset, size = field
    old = int.from_bytes(data[offset : offset + size], "little")
    new = choose.choice((old + 1, old - 1, old * 2, len(data), len(data) - offset))
    if choose.random() < 0.7:
        new = choose.choice(NUMBERS)
    return data[:offset] + (new % 256**size).to_bytes(size, "little") + data[offset + size :]


def number_fields(fields: Fields) -> Mutator:
    """A mutator of the numbers that `fields` finds in a sound file."""
    find = lru_cache(64)(fields)

    def mutate(data: bytes, choose: Random) -> bytes:
        known = find(data)
        for _ in range(choose.choice((1, 1, 1, 2, 3))):
            data = with_number(data, choose.choice(known), choose)
        return data

    return mutate


def text_tokens(*words: str) -> Mutator:
    """A mutator of texts: tokens and lines removed, repeated, exchanged, replaced by `words`."""

    def mutate(data: bytes, choose: Random) -> bytes:
        text = data.decode("utf-8", "surrogateescape")
        for _ in range(choose.choice((1, 1, 2, 4))):
            parts = text.splitlines(True) if choose.random() < 0.25 else _TOKEN.findall(text)
            text = "".join(_shuffled(parts, words, choose))[:LARGEST]
        return text.encode("utf-8", "surrogateescape")

    return mutate


def _shuffled(parts: list[str], words: Sequence[str], choose: Random) -> list[str]:
    if not parts:
        return [choose.choice(words)]
    at, other = choose.randrange(len(parts)), choose.randrange(len(parts))
    kind = choose.randrange(6)
    if kind == 0:
        del parts[at]
    elif kind == 1:
        parts[at] *= min(choose.choice((2, 3, 40, 3000)), max(1, LARGEST // len(parts[at])))
    elif kind == 2:
        parts[at], parts[other] = parts[other], parts[at]
    elif kind == 3:
        parts[at] = choose.choice(words)
    elif kind == 4:
        parts.insert(at, choose.choice(words))
    else:
        first, last = sorted((at, other))
        parts[first:last] = parts[first:last] * choose.choice((0, 2, 2, 20))
    return parts


def either(*choices: tuple[float, Mutator]) -> Mutator:
    """One of several mutators by weight; now and then two after one another."""
    weights, mutators = zip(*choices, strict=True)

    def mutate(data: bytes, choose: Random) -> bytes:
        (mutator,) = choose.choices(mutators, weights)
        damaged = mutator(data, choose)
        return damage_bytes(damaged, choose) if choose.random() < 0.1 else damaged

    return mutate


def u32(number: int) -> bytes:
    """A little-endian u32."""
    return struct.pack("<I", number)
