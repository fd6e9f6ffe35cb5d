"""What sequential GPTQ will take, before it starts: time, memory and disk."""

import time
from dataclasses import dataclass

import numpy as np

from minitron_core.cpu_limits import default_threads
from minitron_core.gguf import TensorInfo
from minitron_quant.gptq.drift import HALVES
from minitron_quant.gptq.sequential import SequentialJob
from minitron_quant.gptq.stages import Stage, stages_of
from minitron_quant.model_files import EMBEDDING, OUTPUT, tensors_of
from minitron_quant.streaming.layer_file import layer_tensors

# how often the text runs through a layer: parts of it for each stage, and the whole
_FULL_RUNS, _LEVEL_RUNS = 1.8, 2.5
# how much longer llama.cpp's products take than those of BLAS, attention included
_LLAMA_CPP = 2.0
# ridges tried for an input, each with its own factorization
_TRIED = 4
# of a factorization in n³, of its use for the rows that ridges are tried on in n², and of each
# right side in n²: operations of a float32 product that take as long
_FACTOR, _TRIED_ROWS, _RIGHT_SIDE = 1.3, 2800, 6.0
# operations for the code of a weight, as many as a product does in the time that it takes
_CODE_OPERATIONS = 3e4
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
    stages = stages_of(layer)
    threads = job.threads or default_threads()
    operations = layers_left * _operations(job, stages, infos)
    # the inputs of the output matrix come from the last layer's runs
    operations += _solving(job, [Stage((output,))], infos)
    seconds = operations / (_speed() * threads)
    return Forecast(seconds, _memory(job, stages, infos), disk)


def _operations(job: SequentialJob, stages: list[Stage], infos: dict[str, TensorInfo]) -> float:
    """Floating-point operations for the stages of one layer, in BLAS's time."""
    weights = sum(infos[name].n_elements for stage in stages for name in stage.weights)
    runs = _FULL_RUNS + len(job.levels) * _LEVEL_RUNS
    return 2.0 * job.chunks.size * weights * runs * _LLAMA_CPP + _solving(job, stages, infos)


def _solving(job: SequentialJob, stages: list[Stage], infos: dict[str, TensorInfo]) -> float:
    """Those for the sums, the targets and the codes of some stages."""
    levels, tokens, total = len(job.levels), job.chunks.size, 0.0
    weights = sum(infos[name].n_elements for stage in stages for name in stage.weights)
    for stage in stages:
        columns, rows = infos[stage.weights[0]].shape[0], _rows(stage, infos)
        states = rows if stage.residual else 0
        total += levels * 2.0 * tokens * columns * (2 * columns + states)
        total += levels * columns**2 * _TRIED * (_FACTOR * columns + _TRIED_ROWS)
        sides = rows if stage.residual else min(rows, columns)
        total += levels * columns**2 * (_FACTOR * columns + _RIGHT_SIDE * sides)
    return total + levels * weights * _CODE_OPERATIONS


def _memory(job: SequentialJob, stages: list[Stage], infos: dict[str, TensorInfo]) -> float:
    levels = len(job.levels)
    matrices = [infos[name] for stage in stages for name in stage.weights]
    layers = sum(info.nbytes + 4 * levels * info.n_elements for info in matrices)
    most = 0.0
    for stage in stages:
        columns, rows = infos[stage.weights[0]].shape[0], _rows(stage, infos)
        states = rows if stage.residual else 0
        sums = levels * HALVES * 4 * columns * (2 * columns + states)
        solving = 8 * columns * (5 * columns + 4 * rows)
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
