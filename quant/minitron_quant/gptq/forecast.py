"""What sequential GPTQ will take, before it starts: time, memory and disk."""

import time
from dataclasses import dataclass
from itertools import chain

import numpy as np

from minitron_core.cpu_limits import default_threads
from minitron_core.gguf import TYPE, TensorInfo
from minitron_quant.gptq.codebook_types import CODEBOOKS
from minitron_quant.gptq.drift import HALVES
from minitron_quant.gptq.sequential import SequentialJob
from minitron_quant.gptq.stages import Stage, stages_of
from minitron_quant.model_files import EMBEDDING, OUTPUT, tensors_of
from minitron_quant.streaming.layer_file import layer_tensors

# Operations of a float32 product of BLAS that take as long, measured with 256 to 9,216 columns:
# of llama.cpp's products,
_LLAMA_CPP = 2.3
# of sums, which add to a matrix for each chunk,
_SUMS = 1.3
# of a factorization in n³, of its use for the rows that ridges are tried on in n², of each right
# side in n²,
_FACTOR, _TRIED_ROWS, _RIGHT_SIDE = 0.7, 1800, 2.5
# and for the code of a weight, coordinate descent included.
_SCALAR_CODE, _CODEBOOK_CODE = 4e4, 9e4
_SLOW_CODES = {"iq2_s": 1.5e5, "iq1_s": 4.4e5, "iq1_m": 4.4e5}
# ridges tried for an input, each with its own factorization
_TRIED = 3.5
# of one layer with one chunk, whatever its size, in seconds of all threads
_RUN_SECONDS = 0.008
_SAMPLE = 768
# the process, llama.cpp's buffers and a chunk's values
_BASE_BYTES = 250e6


@dataclass(frozen=True)
class Forecast:
    """seconds: on idle processors. memory, disk: bytes."""

    seconds: float
    memory: float
    disk: float

    def __str__(self) -> str:
        minutes = self.seconds / 60
        took = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{max(1, round(minutes))} min"
        return (
            f"sequential GPTQ takes about {took}, {self.memory / 1e9:.1f} GB of memory and "
            f"{self.disk / 1e9:.1f} GB of disk while it runs"
        )


def forecast(job: SequentialJob, layers_left: int, disk: float) -> Forecast:
    """What is left of a job takes this; disk: bytes of states and codes."""
    layer = layer_tensors(tensors_of(job.shards), 0)
    infos = {name: info for name, (_, info) in layer.items()}
    tensors = tensors_of(job.shards)
    output = OUTPUT if OUTPUT in tensors else EMBEDDING
    infos[output] = tensors[output][1]
    stages, threads = stages_of(layer), job.threads or default_threads()
    operations = layers_left * (_running(job, stages, infos) + _solving(job, stages, infos))
    operations += _encoding(job, layers_left)
    if layers_left:  # the inputs of the output matrix come from the last layer's runs
        operations += _solving(job, [Stage((output,))], infos)
    runs = layers_left * len(job.chunks) * (1 + len(stages) * len(job.levels))
    seconds = operations / (_speed() * threads) + runs * _RUN_SECONDS
    return Forecast(seconds, _memory(job, stages, infos), disk)


def _running(job: SequentialJob, stages: list[Stage], infos: dict[str, TensorInfo]) -> float:
    """Operations for the runs of one layer: the full model's, and each level's up to its stages."""
    weights = [sum(infos[name].n_elements for name in stage.weights) for stage in stages]
    level = sum(sum(weights[:number]) for number in range(len(weights)))
    return 2.0 * job.chunks.size * (sum(weights) + len(job.levels) * level) * _LLAMA_CPP


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


def _speed() -> float:
    """Operations per second of a product in one thread of this machine."""
    square = np.ones((_SAMPLE, _SAMPLE), np.float32)
    square @ square
    started = time.thread_time()
    square @ square
    return 2.0 * _SAMPLE**3 / max(time.thread_time() - started, 1e-6)
