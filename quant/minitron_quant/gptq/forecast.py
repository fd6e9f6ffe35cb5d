"""What GPTQ will take, before it starts: time, memory and disk."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

from minitron_core.cpu_limits import default_threads
from minitron_core.gguf import TYPE, TensorInfo
from minitron_quant.covariance.collect import CovarianceSettings
from minitron_quant.covariance.files import PARTS
from minitron_quant.covariance.gram import block_edges
from minitron_quant.decode_forecast import (
    attention_operations,
    blas_operations_per_second,
    llama_cpp_operations_per_second,
)
from minitron_quant.gptq.codebook_types import CODEBOOKS
from minitron_quant.gptq.drift import HALVES
from minitron_quant.gptq.estimate import Method
from minitron_quant.gptq.sequential import SequentialJob
from minitron_quant.gptq.stages import Stage, stages_of
from minitron_quant.model_files import EMBEDDING, OUTPUT, tensors_of
from minitron_quant.quantize.prepare import QuantizeJob
from minitron_quant.streaming.layer_file import layer_count, layer_tensors

# Operations of a float32 product of BLAS that take as long, measured with 256 to 9,216 columns:
# of sums, which add to a matrix for each chunk,
_SUMS = 1.3
# of a factorization in n³, of its use for the rows that ridges are tried on in n², of each right
# side in n²,
_FACTOR, _TRIED_ROWS, _RIGHT_SIDE = 0.7, 1800, 2.5
# and for the code of a weight, coordinate descent included.
_SCALAR_CODE, _CODEBOOK_CODE = 4e4, 9e4
_SLOW_CODES = {"iq1_s": 1.5e5, "iq1_m": 1.5e5}
# Independent codes have no coordinate descent.
_INDEPENDENT_SCALAR, _INDEPENDENT_CODEBOOK = 1.5e4, 2.4e4
# float64 factorizations of an input's block, its dampings tried included, in n³
_FACTORS = 14.0
# sums are the work of one thread beside llama.cpp's, and wait for each other
_WAITING = 1.15
# weights that share an input, by the one that it is counted for
_SHARED = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate"}
# ridges tried for an input, each with its own factorization
_TRIED = 3.5
# gradients and rows that compensate, beside sequential: 1.3 with 8 million weights, 1.6 with 135
_TWO_SIDED = 1.5
# of one layer with one chunk, whatever its size, in seconds of all threads
_RUN_SECONDS = 0.008
# the process, llama.cpp's buffers and a chunk's values
_BASE_BYTES = 250e6


@dataclass(frozen=True)
class Forecast:
    """seconds: on idle processors. memory, disk: bytes."""

    method: Method
    seconds: float
    memory: float
    disk: float

    def two_sided(self, gradients: float) -> Self:
        """The same, two-sided; gradients: bytes of memory that they take."""
        seconds, memory = _TWO_SIDED * self.seconds, max(self.memory, gradients)
        return replace(self, method="two-sided", seconds=seconds, memory=memory)

    def document(self) -> dict[str, str | float | int]:
        """As it is in JSON."""
        return {
            "method": self.method,
            "estimated_seconds": round(self.seconds, 1),
            "memory_bytes": round(self.memory),
            "disk_bytes": round(self.disk),
        }

    def __str__(self) -> str:
        minutes = self.seconds / 60
        took = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} min"
        if minutes < 1.5:
            took = f"{max(1, round(self.seconds))} s"
        return (
            f"{self.method} GPTQ takes about {took}, {self.memory / 1e9:.1f} GB of memory and "
            f"{self.disk / 1e9:.1f} GB of disk while it runs"
        )


def forecast_sequential(job: SequentialJob, layers_left: int, disk: float) -> Forecast:
    """What is left of a job takes this; disk: bytes of states and codes."""
    layer = layer_tensors(tensors_of(job.shards), 0)
    infos = {name: info for name, (_, info) in layer.items()}
    tensors = tensors_of(job.shards)
    output = OUTPUT if OUTPUT in tensors else EMBEDDING
    infos[output] = tensors[output][1]
    stages, threads = stages_of(layer), job.threads or default_threads()
    running = layers_left * _running(job, stages, infos) / llama_cpp_operations_per_second()
    operations = layers_left * _solving(job, stages, infos) + _encoding(job, layers_left)
    if layers_left:  # the inputs of the output matrix come from the last layer's runs
        operations += _solving(job, [Stage((output,))], infos)
    runs = layers_left * len(job.chunks) * (1 + len(stages) * len(job.levels))
    seconds = (running + operations / blas_operations_per_second()) / threads + runs * _RUN_SECONDS
    return Forecast("sequential", seconds, _memory(job, stages, infos), disk)


def forecast_independent(job: QuantizeJob, collecting: CovarianceSettings, tokens: int) -> Forecast:
    """What the covariance of so many tokens and the codes of all levels take.

    tokens: 0 where the covariance exists already.
    """
    infos = {name: info for name, (_, info) in job.plan.tensors.items()}
    output = OUTPUT if OUTPUT in infos else EMBEDDING
    layers = {name: info for name, info in infos.items() if _is_layer_matrix(name, info)}
    blocks = list(_blocks({**layers, output: infos[output]}, collecting.block))
    sums = 4.0 * sum(width**2 for width in blocks)
    passes = math.ceil(sums / collecting.memory)
    run = 2.0 * sum(info.n_elements for info in layers.values())
    run += attention_operations(job.shards, collecting.chunks.n_ctx)
    running = _WAITING * tokens * run * passes / llama_cpp_operations_per_second()
    operations = _WAITING * tokens * sums / 2 * _SUMS + _FACTORS * sum(width**3 for width in blocks)
    for level in job.outputs:
        codes = (
            infos[name].n_elements * _independent_code(level.planned.types[name])
            for name in (*layers, output)
        )
        operations += sum(codes)
    threads = job.settings.threads or default_threads()
    disk = PARTS * sums + sum(level.bytes for level in job.outputs)
    logits = 4.0 * collecting.chunks.n_batch * infos[output].rows  # llama.cpp's room for them
    memory = _BASE_BYTES + min(sums, collecting.memory) + logits
    seconds = (running + operations / blas_operations_per_second()) / threads
    return Forecast("independent", seconds, memory, disk)


def _is_layer_matrix(name: str, info: TensorInfo) -> bool:
    return name.startswith("blk.") and name.endswith(".weight") and len(info.shape) == 2


def _blocks(infos: Mapping[str, TensorInfo], widest: int) -> Iterator[int]:
    """The widths of the blocks of every input, which some weights share."""
    seen = set()
    for name, info in infos.items():
        layer, _, kind = name.removesuffix(".weight").rpartition(".")
        source = layer, _SHARED.get(kind, kind)
        if source not in seen:
            seen.add(source)
            yield from (end - start for start, end in block_edges(info.shape[0], widest))


def _independent_code(ggml_type: int) -> float:
    name = TYPE[ggml_type].name
    slower = _SLOW_CODES.get(name, _CODEBOOK_CODE) / _CODEBOOK_CODE
    return _INDEPENDENT_CODEBOOK * slower if name in CODEBOOKS else _INDEPENDENT_SCALAR


def _running(job: SequentialJob, stages: list[Stage], infos: dict[str, TensorInfo]) -> float:
    """Operations for the runs of one layer: the full model's, and each level's up to its stages."""
    weights = [sum(infos[name].n_elements for name in stage.weights) for stage in stages]
    level = sum(sum(weights[:number]) for number in range(len(weights)))
    attention = attention_operations(job.shards, job.chunks.shape[1]) / layer_count(job.shards)
    products = 2.0 * (sum(weights) + len(job.levels) * level)
    attention *= 1 + len(job.levels) * (len(stages) - 1)
    return job.chunks.size * (products + attention)


def _solving(job: SequentialJob, stages: list[Stage], infos: dict[str, TensorInfo]) -> float:
    """Those for the sums and the targets of some stages."""
    levels, tokens, total = len(job.levels), job.chunks.size, 0.0
    for stage in stages:
        columns, rows = infos[stage.input].shape[0], _rows(stage, infos)
        # x̃ᵀx̃ is symmetric; drift of the states goes through the weight first, and later on
        drift = 3 * rows if stage.residual else columns
        total += levels * 2.0 * tokens * columns * (columns / 2 + drift) * _SUMS
        total += levels * columns**2 * _TRIED * (_FACTOR * columns + _TRIED_ROWS)
        sides = rows if stage.residual else min(rows, columns)
        total += levels * columns**2 * (_FACTOR * columns + _RIGHT_SIDE * sides)
    return total


def _encoding(job: SequentialJob, layers_left: int) -> float:
    """Those for the codes of the last layers, and of the output matrix."""
    total = 0.0
    names = job.tensors_by_layer()
    for name in chain(*names[len(names) - layers_left :]):
        info = tensors_of(job.shards)[name][1]
        total += sum(info.n_elements * _code(types[name]) for types in job.levels.values())
    return total


def _code(ggml_type: int) -> float:
    name = TYPE[ggml_type].name
    return _SLOW_CODES.get(name, _CODEBOOK_CODE if name in CODEBOOKS else _SCALAR_CODE)


def _memory(job: SequentialJob, stages: list[Stage], infos: dict[str, TensorInfo]) -> float:
    levels = len(job.levels)
    matrices = [infos[name] for stage in stages for name in stage.weights]
    layers = sum(info.nbytes + 4 * levels * info.n_elements for info in matrices)
    most = 0.0
    for stage in stages:
        columns, rows = infos[stage.input].shape[0], _rows(stage, infos)
        drift = rows if stage.residual else columns
        sums = levels * HALVES * 4 * columns * (columns + drift)
        solving = 4 * columns * (4 * columns + 4 * drift)
        most = max(most, sums + solving)
    return _BASE_BYTES + layers + most


def _rows(stage: Stage, infos: dict[str, TensorInfo]) -> int:
    return sum(infos[name].rows for name in stage.weights)
