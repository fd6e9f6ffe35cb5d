"""Many continuations in one cache: what neighbours begin with in common is decoded once.

Neighbours are compared in the order given, so sequences that share a beginning belong side by side:
the choices of a question, the questions after the same examples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_engine.generation.sequence import common_prefix
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.tasks.question import Continuation

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class PrefixGroup:
    """Sequences [first, first + len(shared)) of a list; `shared` tokens each has of the one before.

    The first shares with the last of the group before it, whose tokens are in the cache.
    """

    first: int
    shared: list[int]


@dataclass(frozen=True)
class CacheLayout:
    """The tokens of a group to decode, one entry each, and where each sequence finds its own.

    `sequence`, `sharers`: a token belongs to sequences [sequence, sequence + sharers) of the cache.
    `kept`: for every sequence, how much of what the cache holds it begins with. `cells`: for every
    sequence, the entries of its positions from `kept` on.
    """

    token: Tokens
    position: Tokens
    sequence: Tokens
    sharers: Tokens
    kept: list[int]
    cells: list[Indices]


def drop_after(tokens: Tokens, most: int, keep: int) -> Tokens:
    """At most `most` tokens, without those after the first `keep`; the same array if it fits."""
    surplus = len(tokens) - most
    if surplus <= 0:
        return tokens
    return np.concatenate([tokens[:keep], tokens[keep + surplus :]])


def shorten(item: Continuation, n_ctx: int, keep: int) -> Continuation:
    """A continuation of at most n_ctx inputs: what is too much goes after the first `keep`."""
    tokens = drop_after(item.tokens, n_ctx + 1, keep)
    if tokens is item.tokens:
        return item
    return Continuation(tokens, max(1, item.start - (len(item.tokens) - len(tokens))))


def group_by_prefix(
    sequences: Sequence[Continuation], capacity: int, most: int
) -> Iterator[PrefixGroup]:
    """Groups of up to `most` sequences that fit into a cache of `capacity` tokens.

    Shared tokens count once. Every sequence must fit by itself.
    """
    first, shared, used, kept = 0, list[int](), 0, 0
    for number, item in enumerate(sequences):
        common = common_prefix(sequences[number - 1].inputs, item.inputs) if number else 0
        # a kept token has no logits any more, so the one before the first scored is computed again
        again = min(common, item.start - 1)
        own = again if min(kept, common) >= item.start else common
        if shared and (used + len(item.inputs) - own > capacity or len(shared) == most):
            yield PrefixGroup(first, shared)
            first, shared, own, kept, used = number, [], again, again, again
        shared.append(own)
        kept = min(kept, own)
        used += len(item.inputs) - own
    if shared:
        yield PrefixGroup(first, shared)


def lay_out_group(sequences: Sequence[Continuation], shared: Sequence[int]) -> CacheLayout:
    """The entries of a group; shared[0] tokens are in the cache already."""
    inputs = [item.inputs for item in sequences]
    kept, cells, sharers = list[int](), list[Indices](), list[Tokens]()
    count, reach = 0, shared[0]
    for number, (tokens, own) in enumerate(zip(inputs, shared, strict=True)):
        new = len(tokens) - own
        reach = min(reach, own) if number else own
        before = cells[-1][: max(own - kept[-1], 0)] if number else np.empty(0, np.int64)
        kept.append(reach)
        # fewer kept than the sequence before: the rest of what they share is in its cells
        cells.append(np.concatenate([before, np.arange(count, count + new)]))
        sharers.append(_sharers(inputs, shared, number)[own:])
        count += new
    numbers = range(len(inputs))
    return CacheLayout(
        token=np.concatenate([inputs[n][shared[n] :] for n in numbers]),
        position=np.concatenate([np.arange(shared[n], len(inputs[n])) for n in numbers]).astype(
            np.int32
        ),
        sequence=np.repeat(np.arange(len(inputs), dtype=np.int32), [len(s) for s in sharers]) + 1,
        sharers=np.concatenate(sharers),
        kept=kept,
        cells=cells,
    )


def _sharers(inputs: Sequence[Tokens], shared: Sequence[int], number: int) -> Tokens:
    """How many sequences from `number` on have each of its tokens."""
    counts = np.ones(len(inputs[number]), dtype=np.int32)
    reach = len(counts)
    for later in range(number + 1, len(inputs)):
        reach = min(reach, shared[later])
        if reach <= shared[number]:
            break
        counts[:reach] += 1
    return counts
