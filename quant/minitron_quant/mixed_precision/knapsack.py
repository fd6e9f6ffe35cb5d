"""A multiple-choice knapsack: the mix of least cost for every size, exactly.

Each tensor takes one of its types. Dynamic programming over sizes solves it for all sizes in one
pass. The tensors of the layers are of a few shapes, so that their
sizes differ by multiples of a coarse unit and the table is short; the few others (embedding,
output) would spoil that unit, and are tried in all their combinations instead.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from minitron_core.gguf import layer_number

# entries of the table; with more, sizes are rounded up to a coarser unit and the best may be missed
_MAX_ENTRIES = 1 << 21
_MAX_COMBINATIONS = 1 << 12


@dataclass(frozen=True)
class TypeChoice:
    """A tensor encoded as `type` (a ggml id) takes `bytes` and adds `kld_cost` to the whole."""

    type: int
    bytes: int
    kld_cost: float


@dataclass(frozen=True)
class Mix:
    """A type for every tensor: their bytes together, and the sum of their costs."""

    types: dict[str, int]
    bytes: int
    kld_cost: float


def best_choices(choices: Sequence[TypeChoice]) -> list[TypeChoice]:
    """The choices without another of at most their size and cost, smallest first."""
    kept: list[TypeChoice] = []
    for choice in sorted(choices, key=lambda choice: (choice.bytes, choice.kld_cost)):
        if not kept or choice.kld_cost < kept[-1].kld_cost:
            kept.append(choice)
    return kept


class Knapsack:
    """The best mixes of a model's tensors, from the smallest to the one of least cost."""

    def __init__(self, choices: Mapping[str, Sequence[TypeChoice]]) -> None:
        """choices: by tensor, at least one each; bytes as they count in the file."""
        self._choices = {name: best_choices(several) for name, several in choices.items()}
        self._few = _without_layer(self._choices)
        self._regular = [name for name in self._choices if name not in self._few]
        self._unit = _unit([self._choices[name] for name in self._regular])
        self._base = sum(self._choices[name][0].bytes for name in self._regular)
        self._picks: list[NDArray[np.int8]] = []
        # least cost of the regular tensors in their smallest types and at most i units more
        self._least = np.zeros(1)
        for name in self._regular:
            self._least, picks = _add_tensor(self._least, self._units(name), self._choices[name])
            self._picks.append(picks)
        self._combinations = list(product(*(self._choices[name] for name in self._few)))
        self._few_bytes = np.array([sum(c.bytes for c in chosen) for chosen in self._combinations])
        self._few_cost = np.array(
            [sum(c.kld_cost for c in chosen) for chosen in self._combinations]
        )

    @property
    def smallest(self) -> int:
        """The bytes of all tensors in their smallest types."""
        return sum(several[0].bytes for several in self._choices.values())

    @property
    def largest(self) -> int:
        """The bytes of the mix of least cost."""
        return sum(several[-1].bytes for several in self._choices.values())

    def solve(self, budget: int) -> Mix:
        """The mix of least cost in at most `budget` bytes; ValueError below the smallest."""
        if budget < self.smallest:
            raise ValueError(f"{budget} bytes are fewer than the smallest mix has")
        room = budget - self._base - self._few_bytes
        at = np.minimum(room // self._unit, len(self._least) - 1)
        kld_cost = np.where(room < 0, np.inf, self._few_cost + self._least[np.maximum(at, 0)])
        best = int(kld_cost.argmin())
        types = {
            name: choice.type
            for name, choice in zip(self._few, self._combinations[best], strict=True)
        }
        return self.mix(types | self._trace(int(at[best])))

    def size_for(self, kld_cost: float) -> int | None:
        """The fewest bytes with at most this kld_cost; None if no mix has so little."""
        allowed = kld_cost - self._few_cost
        # the table falls, so its negative rises
        at = np.searchsorted(-self._least, -allowed)
        sizes = self._base + self._few_bytes + at * self._unit
        possible = sizes[at < len(self._least)]
        return int(possible.min()) if len(possible) else None

    def mix(self, types: Mapping[str, int]) -> Mix:
        """The mix of these types, which must be among the best choices of their tensors."""
        chosen = {
            name: next(choice for choice in several if choice.type == types[name])
            for name, several in self._choices.items()
        }
        return Mix(
            {name: choice.type for name, choice in chosen.items()},
            sum(choice.bytes for choice in chosen.values()),
            math.fsum(choice.kld_cost for choice in chosen.values()),
        )

    def random(self, budget: int, seed: int) -> Mix:
        """A random mix that fills the budget as far as possible, for comparison."""
        draw = np.random.default_rng(seed)
        picks = {name: int(draw.integers(len(each))) for name, each in self._choices.items()}
        room = budget - sum(self._choices[name][pick].bytes for name, pick in picks.items())
        for step in (-1, 1):  # first smaller types until it fits, then larger ones while it does
            while movable := [
                name
                for name, pick in picks.items()
                if 0 <= pick + step < len(self._choices[name])
                and (room < 0 if step < 0 else self._step(name, pick) <= room)
            ]:
                name = movable[int(draw.integers(len(movable)))]
                room -= step * self._step(name, picks[name] + min(step, 0))
                picks[name] += step
        return self.mix({name: self._choices[name][pick].type for name, pick in picks.items()})

    def _step(self, name: str, pick: int) -> int:
        return self._choices[name][pick + 1].bytes - self._choices[name][pick].bytes

    def _units(self, name: str) -> list[int]:
        several = self._choices[name]
        return [-(-(choice.bytes - several[0].bytes) // self._unit) for choice in several]

    def _trace(self, at: int) -> dict[str, int]:
        types = {}
        for name, picks in zip(reversed(self._regular), reversed(self._picks), strict=True):
            at = min(at, len(picks) - 1)
            pick = int(picks[at])
            types[name] = self._choices[name][pick].type
            at -= self._units(name)[pick]
        return types


def _add_tensor(
    least: NDArray[np.float64], units: Sequence[int], choices: Sequence[TypeChoice]
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """The table with one tensor more, and which of its choices each entry takes."""
    before = np.concatenate([least, np.full(units[-1], least[-1])])
    after = before + choices[0].kld_cost
    picks = np.zeros(len(after), np.int8)
    for number, (unit, choice) in enumerate(zip(units[1:], choices[1:], strict=True), 1):
        candidate = before[: len(before) - unit] + choice.kld_cost
        better = candidate < after[unit:]
        np.copyto(after[unit:], candidate, where=better)
        np.copyto(picks[unit:], np.int8(number), where=better)
    return after, picks


def _without_layer(choices: Mapping[str, Sequence[TypeChoice]]) -> list[str]:
    few = [name for name in choices if layer_number(name) is None]
    return few if math.prod(len(choices[name]) for name in few) <= _MAX_COMBINATIONS else []


def _unit(choices: Sequence[Sequence[TypeChoice]]) -> int:
    """The largest size of which all differences are multiples, or a coarser one."""
    extra = [choice.bytes - several[0].bytes for several in choices for choice in several]
    unit = math.gcd(*extra) or 1
    most = sum(several[-1].bytes - several[0].bytes for several in choices)
    return unit * max(1, -(-most // (unit * _MAX_ENTRIES)))
