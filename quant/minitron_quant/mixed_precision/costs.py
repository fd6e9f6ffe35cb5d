"""The costs of types: how much each encoding of a tensor changes what the tensor computes.

For inputs x with E[x²] = v and E[x] = a, column by column and otherwise uncorrelated, the expected
squared error of e·x is Σ_j (v_j − a_j²) e_j² + (Σ_j a_j e_j)², e being decoded − weight; the cost
of a type is its sum over the rows. The embedding is looked up, not multiplied: there a row counts
as often as its token occurs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from minitron_core.cpu_limits import default_threads
from minitron_core.gguf import TYPE, TensorInfo
from minitron_core.progress import Event, Progress, ignore
from minitron_quant.array_backend import Floats
from minitron_quant.levels import level_named
from minitron_quant.model_files import EMBEDDING, Tensors
from minitron_quant.quantize.encode import EncodeTask, Errors, add_errors, encode
from minitron_quant.quantize.options import ENCODABLE
from minitron_quant.quantize.plan import requires_imatrix
from minitron_quant.quantize.recipe import bits_of

# Rows of a tensor to encode: a random sample of so many gives the cost to about 1 %. Of wide ones
# fewer: what matters is the cost of a type beside another's on the same rows, which 227 rows of
# SmolLM2's ffn_down give to 1 %.
_ROWS = 1024
_WEIGHTS = 1 << 21
_LEAST_ROWS = 16  # of each matrix
# up to a quarter of a tensor's effect lost, divergence grows as the cost does; beyond (one bit a
# weight loses more than a third) it grew up to 90 times faster on the bundled models
_MOST_LOST = 0.3
_ANY_LEVEL = level_named("Q4_K_M")


@dataclass(frozen=True)
class InputMoments:
    """The moments of a tensor's inputs: E[x²] and E[x], both [matrices, columns]."""

    squares: Floats
    means: Floats

    @classmethod
    def of(cls, squares: Floats, means: NDArray[np.float64] | None) -> "InputMoments":
        """Moments from mean squares by column, and from means where they were collected."""
        shaped = np.zeros_like(squares) if means is None else means.astype(np.float32)
        return cls(squares, shaped.reshape(squares.shape))

    @classmethod
    def unknown(cls, columns: int) -> "InputMoments":
        """Moments for a tensor without statistics: all columns alike."""
        return cls(np.ones((1, columns), np.float32), np.zeros((1, columns), np.float32))


@dataclass(frozen=True)
class OutputErrors:
    """The cost of rows, and the cost of rows of zeros; see ErrorMetric."""

    inputs: InputMoments

    def __call__(self, values: Floats, decoded: Floats, matrix: int) -> tuple[float, float]:
        """See ErrorMetric."""
        return self._sum(decoded - values, matrix), self._sum(values, matrix)

    def _sum(self, rows: Floats, matrix: int) -> float:
        number = matrix % len(self.inputs.squares)
        mean = self.inputs.means[number]
        variance = np.maximum(self.inputs.squares[number] - mean * mean, 0)
        squared = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        shifted = (rows @ mean).astype(np.float64)
        return float(squared @ variance + shifted @ shifted)


@dataclass(frozen=True)
class CostInputs:
    """The inputs of the computation of costs.

    weights: the importance for the encoders, by tensor, [matrices, columns]. inputs: by tensor.
    frequency: of each token in the text, [n_vocab].
    """

    tensors: Tensors
    weights: Mapping[str, Floats]
    inputs: Mapping[str, InputMoments]
    frequency: NDArray[np.float64]


def type_costs(
    given: CostInputs, threads: int | None = None, progress: Progress = ignore
) -> dict[str, dict[int, float]]:
    """The cost of each type for each tensor, without the types that lose too much."""
    found: dict[str, dict[int, float]] = {}
    errors: Errors = {}
    total = sum(info.n_elements for _, info in given.tensors.values())
    done = 0
    for slab in encode((task for task, _ in sampled_tasks(given)), threads or default_threads()):
        add_errors(errors, slab.errors)
        if slab.last:
            name = slab.task.info.name
            info = given.tensors[name][1]
            scale = _scale(info, slab.task.info.rows)
            found[name] = {
                ggml_type: scale * error
                for ggml_type, (error, signal) in errors.items()
                if error <= _MOST_LOST * signal
            }
            errors = {}
            done += info.n_elements
            progress(Event("costs", done, total, "weights", name))
    return found


def candidate_types(info: TensorInfo, importance: bool) -> list[int]:
    """The types smaller than the tensor's own that its rows can be encoded to."""
    return [
        ggml_type
        for ggml_type in sorted(ENCODABLE)
        if info.shape[0] % TYPE[ggml_type].block_elements == 0
        and bits_of(ggml_type) < bits_of(info.type)
        and (importance or not requires_imatrix(info.name, ggml_type, _ANY_LEVEL))
    ]


def _scale(info: TensorInfo, sampled: int) -> float:
    # each matrix has as many sampled rows as the others; those of the embedding are tokens
    return (1 if info.name == EMBEDDING else info.rows) / sampled


def sampled_tasks(given: CostInputs) -> Iterator[tuple[EncodeTask, float]]:
    """Sampled rows of every tensor for all types, and the factor from their error to the cost."""
    for name, (shard, info) in given.tensors.items():
        weights = given.weights.get(name)
        inputs = given.inputs.get(name) or InputMoments.unknown(info.shape[0])
        rows = _sample(info, given.frequency)
        data = shard.data(info).reshape(info.rows, info.row_size)[rows]
        matrices = info.rows // info.shape[1]
        shape = (info.shape[0], len(rows) // matrices, matrices)
        sampled = replace(info, shape=shape, nbytes=data.nbytes)
        types = tuple(candidate_types(info, weights is not None))
        task = EncodeTask(sampled, data.reshape(-1), types, weights, OutputErrors(inputs))
        yield task, _scale(info, len(rows))


def _sample(info: TensorInfo, frequency: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers of sampled rows, equally many of every matrix; the embedding's by token frequency."""
    columns, per_matrix = info.shape[:2]
    wanted = max(_LEAST_ROWS, min(_ROWS, _WEIGHTS // columns))
    if info.name == EMBEDDING:
        cumulated = np.cumsum(frequency) / frequency.sum()
        places = (np.arange(wanted) + 0.5) / wanted
        return np.searchsorted(cumulated, places).clip(max=info.rows - 1)
    count = min(per_matrix, max(_LEAST_ROWS, wanted * per_matrix // info.rows))
    within = np.sort(np.random.default_rng(0).choice(per_matrix, count, replace=False))
    first = np.arange(0, info.rows, per_matrix)
    return (first[:, None] + within).reshape(-1)
