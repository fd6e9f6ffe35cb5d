"""The best recipe for a size, from a model's sensitivity and the types that tensors may have.

Budgets are bytes of the file, metadata and padding included; no file exceeds them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minitron_core.errors import Usage
from minitron_core.gguf import DEFAULT_ALIGNMENT as ALIGNMENT
from minitron_core.gguf import (
    TYPE,
    KeyValue,
    TensorInfo,
    TensorSpec,
    file_size,
    padded,
    tensor_bytes,
)
from minitron_quant.levels import Level
from minitron_quant.mixed_precision.knapsack import Knapsack, Mix, TypeChoice
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity
from minitron_quant.model_files import open_model_files, tensors_of
from minitron_quant.quantize.importance import load_importance
from minitron_quant.quantize.options import QuantizeOptions, check_patterns
from minitron_quant.quantize.plan import level_metadata, make_plan
from minitron_quant.quantize.recipe import Recipe, bits_of, make_recipe

_LONGEST = max(TYPE, key=lambda ggml_type: len(TYPE[ggml_type].name))


@dataclass(frozen=True)
class Restrictions:
    """Constraints of a recipe. types: to choose from, None for all that were measured.

    excluded: types not to use. pins, floors: (pattern, type), the first match applies; a pin is the
    tensor's type, a floor the type with the fewest bits that it may have.
    """

    types: tuple[int, ...] | None = None
    excluded: tuple[int, ...] = ()
    pins: tuple[tuple[str, int], ...] = ()
    floors: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Point:
    """A predicted file: bytes, bits per weight, divergence from the full model."""

    level: str
    bytes: int
    bits_per_weight: float
    predicted: float


class SizeSolver:
    """Solves for sizes of a measured model within restrictions."""

    def __init__(
        self,
        model: Path,
        sensitivity: Sensitivity,
        imatrix: Path,
        restrictions: Restrictions,
        keys: Sequence[KeyValue] = (),
    ) -> None:
        """keys: metadata of the files besides those of the importance matrix."""
        self._shards = open_model_files(model)
        self._sensitivity = sensitivity
        self._tensors = {name: info for name, (_, info) in tensors_of(self._shards).items()}
        self._keys = (*load_importance(imatrix).keys, *keys)
        for patterns, option in (
            (restrictions.pins, "--tensor-type"),
            (restrictions.floors, "--floor"),
        ):
            check_patterns([pattern for pattern, _ in patterns], [*self._tensors], option)
        self._knapsack = Knapsack(
            {
                name: _choices(self._tensors[name], sensitivity, restrictions)
                for name in sensitivity.tensors
            }
        )

    @property
    def elements(self) -> int:
        """The number of weights of the model."""
        return sum(info.n_elements for info in self._tensors.values())

    def for_size(self, budget: int) -> Recipe:
        """The best recipe whose file has at most `budget` bytes; Usage if out of range."""
        small, large = (
            self._recipe(self._knapsack.solve(size))
            for size in (self._knapsack.smallest, self._knapsack.largest)
        )
        smallest, largest = self.file_bytes(small), self.file_bytes(large)
        if not smallest <= budget <= largest:
            raise Usage(
                f"{budget:,} bytes are {'fewer' if budget < smallest else 'more'} than this model "
                f"can be made to: from {smallest:,} to {largest:,} bytes",
                "choose a size between these",
            )
        # the file holds the recipe's text: first count its largest size, then its real one
        best = small
        for other in (_longest(small), None):
            header = self.file_bytes(other or best) - self.data_bytes(other or best)
            recipe = self._recipe(
                self._knapsack.solve(max(budget - header, self._knapsack.smallest))
            )
            if recipe.predicted <= best.predicted and self.file_bytes(recipe) <= budget:
                best = recipe
        return best

    def for_bits(self, bits: float) -> Recipe:
        """The best recipe with at most `bits` per weight, metadata not counted."""
        chosen = self._sensitivity.tensors
        fixed = sum(info.nbytes for name, info in self._tensors.items() if name not in chosen)
        ends = self._knapsack.smallest, self._knapsack.largest
        smallest, largest = (8 * (fixed + size) / self.elements for size in ends)
        if not smallest <= bits <= largest:
            raise Usage(
                f"{bits:g} bits per weight are {'fewer' if bits < smallest else 'more'} than this "
                f"model can be made to: from {smallest:.4f} to {largest:.4f}",
                "choose a number between these",
            )
        return self._recipe(self._knapsack.solve(int(bits * self.elements / 8) - fixed))

    def for_divergence(self, divergence: float) -> Recipe:
        """The smallest recipe whose predicted divergence is at most `divergence`."""
        size = self._knapsack.size_for(divergence)
        if size is None:
            least = self._knapsack.solve(self._knapsack.largest).kld_cost
            raise Usage(
                f"no mix of the types allowed is predicted to diverge by {divergence:g} or less; "
                f"the least is {least:.3g}",
                "allow more types, or a larger divergence",
            )
        return self._recipe(self._knapsack.solve(size))

    def random(self, budget: int, seed: int = 0) -> Recipe:
        """A random recipe whose file has nearly `budget` bytes and not more."""
        small = self._recipe(self._knapsack.solve(self._knapsack.smallest))
        header = self.file_bytes(_longest(small)) - self.data_bytes(_longest(small))
        return self._recipe(self._knapsack.random(budget - header, seed))

    def file_bytes(self, recipe: Level, types: Mapping[str, int] | None = None) -> int:
        """The exact size of a recipe's file, or of a level's with these types."""
        chosen = dict(recipe.types) if isinstance(recipe, Recipe) else types or {}
        specs = [
            TensorSpec(name, info.shape, chosen.get(name, info.type))
            for name, info in self._tensors.items()
        ]
        return file_size(level_metadata(self._shards[0], recipe, (), self._keys), specs)

    def curve(self, points: int) -> list[Point]:
        """The best files from the smallest to the largest, at even steps of size."""
        steps = range(points)
        span = self._knapsack.largest - self._knapsack.smallest
        sizes = [self._knapsack.smallest + span * step // max(points - 1, 1) for step in steps]
        recipes = {
            recipe.name: recipe for recipe in map(self._recipe, map(self._knapsack.solve, sizes))
        }
        return [
            Point(recipe.name, self.file_bytes(recipe), recipe.bits, recipe.predicted)
            for recipe in recipes.values()
        ]

    def presets(self, levels: Sequence[Level]) -> list[Point]:
        """llama.cpp's own levels: their exact sizes and predicted divergences."""
        plan = make_plan(self._shards, levels, QuantizeOptions(), imatrix=True)
        points = []
        for planned in plan.levels:
            bits = make_recipe(planned.types, self._tensors, 0).bits
            predicted = self._sensitivity.predict(planned.types)
            size = self.file_bytes(planned.level, planned.types)
            points.append(Point(planned.level.name, size, bits, predicted))
        return points

    def _recipe(self, mix: Mix) -> Recipe:
        return make_recipe(mix.types, self._tensors, mix.kld_cost)

    def data_bytes(self, recipe: Recipe) -> int:
        """The bytes of the recipe's tensors, padded as in the file."""
        return sum(
            padded(tensor_bytes(ggml_type, self._tensors[name].shape), ALIGNMENT)
            for name, ggml_type in recipe.types
        )


def _longest(recipe: Recipe) -> Recipe:
    """The same tensors with the types of the longest names, for the size of the metadata."""
    return replace(recipe, types=tuple((name, _LONGEST) for name, _ in recipe.types))


def _choices(
    info: TensorInfo, sensitivity: Sensitivity, restrictions: Restrictions
) -> list[TypeChoice]:
    pin = _first_match(restrictions.pins, info.name)
    ggml_types = _allowed(info, sensitivity, restrictions) if pin is None else [pin]
    return [
        TypeChoice(
            ggml_type,
            padded(tensor_bytes(ggml_type, info.shape), ALIGNMENT),
            sensitivity.kld_cost(info.name, ggml_type),
        )
        for ggml_type in ggml_types
    ]


def _allowed(info: TensorInfo, sensitivity: Sensitivity, restrictions: Restrictions) -> list[int]:
    floor = _first_match(restrictions.floors, info.name)
    measured = [*sensitivity.tensors[info.name].costs, info.type]
    ggml_types = [
        ggml_type
        for ggml_type in measured
        if (restrictions.types is None or ggml_type in restrictions.types)
        and ggml_type not in restrictions.excluded
        and (floor is None or bits_of(ggml_type) >= bits_of(floor))
    ]
    return ggml_types or [info.type]


def _first_match(patterns: Sequence[tuple[str, int]], name: str) -> int | None:
    return next((ggml_type for pattern, ggml_type in patterns if re.search(pattern, name)), None)
