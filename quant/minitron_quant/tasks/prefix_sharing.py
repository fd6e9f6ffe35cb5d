"""Many continuations in one cache: what neighbours begin with in common is decoded once.

Neighbours are compared in the order given, so sequences that share a beginning belong side by side:
the choices of a question, the questions after the same examples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_engine.llama.tokenization import Tokens

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Continuation:
    """Tokens; those from `start` (1 or more) on are scored, each predicted by all before it."""

    tokens: Tokens
    start: int

    @property
    def inputs(self) -> Tokens:
        """What goes through the model: nothing is asked after the last token."""
        return self.tokens[:-1]


@dataclass(frozen=True)
class Group:
    """Sequences [first, first + len(shared)) of a list; `shared` tokens each has of the one before.

    The first shares with the last of the group before it, whose tokens are in the cache.
    """

    first: int
    shared: list[int]


@dataclass(frozen=True)
class Layout:
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


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences begin with in common."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def without_middle(tokens: Tokens, most: int, keep: int) -> Tokens:
    """At most `most` tokens: the first `keep` and the last ones; the same array if none go."""
    surplus = len(tokens) - most
    if surplus <= 0:
        return tokens
    return np.concatenate([tokens[:keep], tokens[keep + surplus :]])


def group(sequences: Sequence[Continuation], capacity: int, most: int) -> Iterator[Group]:
    """Up to `most` sequences at a time, as fit into a cache of `capacity` tokens, shared ones once.

    Every sequence alone must fit.
    """
    first, shared, used, kept = 0, list[int](), 0, 0
    for number, item in enumerate(sequences):
        common = common_prefix(sequences[number - 1].inputs, item.inputs) if number else 0
        # a kept token has no logits any more, so the one before the first scored is computed anew
        anew = min(common, item.start - 1)
        own = anew if min(kept, common) >= item.start else common
        if shared and (used + len(item.inputs) - own > capacity or len(shared) == most):
            yield Group(first, shared)
            first, shared, own, kept, used = number, [], anew, anew, anew
        shared.append(own)
        kept = min(kept, own)
        used += len(item.inputs) - own
    if shared:
        yield Group(first, shared)


def lay_out(sequences: Sequence[Continuation], shared: Sequence[int]) -> Layout:
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
    return Layout(
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
