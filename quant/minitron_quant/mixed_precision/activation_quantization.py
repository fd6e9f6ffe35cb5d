"""Activation quantization: kernels round their inputs to 8 bits, whatever the weights' type.

A probe in the full-precision model does not show it, and near full precision it is most of the
divergence. ggml's CPU kernels scale the inputs so that the largest of a block becomes 127: blocks
of 256 where the weights' blocks are (q8_K), of 32 for the other types (q8_0). Rounding to whole
numbers then adds noise of variance (largest / 127)² / 12 to every input, and so a cost as errors
of weights do: Σ_rows Σ_j w_j² E[noise_j²]. GPU kernels scale blocks of 32 for all types.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from minitron_core.gguf import TYPE, TYPE_ID
from minitron_core.progress import Event, Progress, ignore
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.array_backend import Doubles, Floats
from minitron_quant.chunking import ChunkSettings, decode_chunks
from minitron_quant.covariance.input_hook import InputHook, find_inputs
from minitron_quant.quantize.encode import EncodeTask, add_errors, encode

SMALL, LARGE = 32, 256
_STEPS = 127
_CHEAP = TYPE_ID["q8_0"]


def block_of(ggml_type: int, device: str) -> int:
    """How many inputs a kernel for weights of this type scales together."""
    large = TYPE[ggml_type].block_elements == LARGE and device == "CPU"
    return LARGE if large else SMALL


def rounding_noise(
    model: Model, chunks: Tokens, settings: ChunkSettings, progress: Progress = ignore
) -> dict[str, dict[int, Doubles]]:
    """The variance of the noise of each input column, by weight and size of block."""
    inputs = find_inputs(model)
    sums: dict[str, dict[int, Doubles]] = defaultdict(dict)
    rows_seen: dict[str, int] = defaultdict(int)

    def take(name: str, rows: Floats) -> None:
        rows_seen[name] += len(rows)
        for block in (SMALL, LARGE):
            if rows.shape[1] % block == 0:
                peaks = np.abs(rows).reshape(len(rows), -1, block).max(axis=2)
                squares = np.einsum("ij,ij->j", peaks, peaks, dtype=np.float64)
                sums[name][block] = sums[name].get(block, 0) + squares

    watch = InputHook([*inputs.columns], take)
    progress(Event("rounding", 0, len(chunks), "chunks"))
    with open_context(model, settings.context(), watch.hook) as context:
        for start, group in decode_chunks(context, chunks, settings, 0, read_logits=False):
            watch.check()
            progress(Event("rounding", start + len(group), len(chunks), "chunks"))
    return {
        weight: {
            block: np.repeat(total, block) / (rows_seen[source] * 12 * _STEPS**2)
            for block, total in sums[source].items()
        }
        for weight, source in inputs.taken_by.items()
    }


@dataclass(frozen=True)
class RoundedInputs:
    """An ErrorMetric: the costs of inputs rounded in small and in large blocks."""

    noise: dict[int, Doubles]

    def __call__(self, values: Floats, decoded: Floats, matrix: int) -> tuple[float, float]:
        """See ErrorMetric; depends on the values alone, not on their encoding."""
        energy = np.einsum("ij,ij->j", values, values, dtype=np.float64)
        small = self.noise.get(SMALL)
        large = self.noise.get(LARGE)
        return (
            0.0 if small is None else float(energy @ small),
            0.0 if large is None else float(energy @ large),
        )


def rounding_costs(
    tasks: Iterable[tuple[EncodeTask, float]], noise: dict[str, dict[int, Doubles]], threads: int
) -> dict[str, dict[int, float]]:
    """Costs by tensor and size of block; tasks are of sampled rows, each with its factor."""
    scales: dict[str, float] = {}
    found: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)

    def plain() -> Iterator[EncodeTask]:
        for task, scale in tasks:
            if columns := noise.get(task.info.name):
                scales[task.info.name] = scale
                yield replace(task, types=(_CHEAP,), metric=RoundedInputs(columns))

    for slab in encode(plain(), threads):
        add_errors(found[slab.task.info.name], slab.errors)
    return {
        name: {SMALL: scales[name] * sums[_CHEAP][0], LARGE: scales[name] * sums[_CHEAP][1]}
        for name, sums in found.items()
    }
