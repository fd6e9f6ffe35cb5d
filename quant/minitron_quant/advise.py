"""Which level fits into memory: weights, KV cache and compute buffers counted."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minitron_core.errors import Damaged, NotFound
from minitron_core.gguf import iterate_tensors, layer_bytes
from minitron_engine.llama.devices import Device
from minitron_engine.llama.settings import EVERY_GPU, ContextSettings
from minitron_engine.memory.estimate import MemoryEstimate, estimate_memory
from minitron_engine.memory.gpu_layers import MARGIN, most_layers
from minitron_quant.levels import LEVELS, level_of_ftype
from minitron_quant.model_files import models_in, open_model_files
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.plan import make_plan

_EMBEDDING = "token_embd.weight"
_FULL = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Budget:
    """Bytes of a GPU's memory and of the machine's; `reserve` of the first stays free."""

    vram: int
    ram: int
    reserve: int = MARGIN


@dataclass(frozen=True)
class Candidate:
    """A level, as a file (`path`) or planned; sizes in bytes.

    weights: of each layer, the output last. embedding: stays in RAM.
    """

    level: str
    path: Path | None
    bytes: int
    weights: tuple[int, ...]
    embedding: int


@dataclass(frozen=True)
class Fit:
    """One row of the advice, sizes in bytes; `vram` and `ram` are for `offloaded` layers.

    layers and offloaded count the output as one more layer, as --gpu-layers does.
    """

    level: str
    path: str | None
    bytes: int
    weights: int
    cache: int
    compute: int
    vram: int
    ram: int
    layers: int
    offloaded: int
    fits: bool
    ppl: float | None = None
    kld_mean: float | None = None

    @property
    def full_precision(self) -> bool:
        """Whether it is the model before quantization, from which levels diverge."""
        return self.level in _FULL

    @property
    def whole(self) -> bool:
        """Whether all of it runs on the GPU."""
        return self.offloaded == self.layers


def candidates(model: Path) -> list[Candidate]:
    """The files of a folder; of a full-precision file also every level that it could become."""
    if not model.is_dir():
        shards = open_model_files(model)
        here = _of_file(model)
        if here.level not in _FULL:
            return [here]
        plan = make_plan(shards, LEVELS, QuantizeOptions(), imatrix=True)
        planned = [
            _candidate(each.level.name, None, ((s.name, s.nbytes) for s in plan.specs(each)))
            for each in plan.levels
        ]
        return [*planned, here]
    return [_of_file(path) for path in models_in(model)]


def _of_file(path: Path) -> Candidate:
    shards = open_model_files(path)
    tensors = ((info.name, info.nbytes) for _, info in iterate_tensors(shards))
    level = level_of_ftype(shards[0].get("general.file_type")) or path.stem
    return _candidate(level, path, tensors)


def _candidate(level: str, path: Path | None, tensors: Iterable[tuple[str, int]]) -> Candidate:
    sizes = dict(tensors)
    weights = tuple(layer_bytes(sizes.items()))
    return Candidate(level, path, sum(sizes.values()), weights, sizes.get(_EMBEDDING, 0))


def advise(
    model: Path,
    settings: ContextSettings,
    budget: Budget,
    quality: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Fit]:
    """How each level fits into memory, the smallest first; all sizes in bytes.

    model: a folder of levels, or a full-precision file that levels could be made of. quality:
    measured values by level, as `measured` reads them from a report.

    Errors: NotFound: a folder without models; those of open_model and open_context.
    """
    found = sorted(candidates(model), key=lambda each: each.bytes)
    # KV cache and buffers are the same for all levels of a model
    file = next(each.path for each in found if each.path is not None)
    needs = estimate_memory(file, settings)
    fits = (fit(each, needs, budget) for each in found)
    return [replace(each, **(quality or {}).get(each.level, {})) for each in fits]


def fit(candidate: Candidate, needs: MemoryEstimate, budget: Budget) -> Fit:
    """As many layers on the GPU as fit, by the rule of --gpu-layers auto."""
    # that rule keeps MARGIN free on every GPU
    free = budget.vram + MARGIN - budget.reserve
    gpu = Device("GPU", "", "gpu", free, budget.vram)
    weights = candidate.weights
    offloaded, _ = most_layers(weights, needs, [needs.compute], [gpu], EVERY_GPU)
    cache = needs.cache / needs.layers
    sizes = [*(size + cache for size in weights[:-1]), weights[-1]]
    kept = len(sizes) - offloaded
    vram = budget.reserve + needs.compute + sum(sizes[kept:]) if offloaded else 0
    ram = round(candidate.embedding + needs.compute + sum(sizes[:kept]))
    return Fit(
        level=candidate.level,
        path=None if candidate.path is None else str(candidate.path),
        bytes=candidate.bytes,
        weights=candidate.bytes,
        cache=needs.cache,
        compute=needs.compute,
        vram=round(vram),
        ram=ram,
        layers=len(sizes),
        offloaded=offloaded,
        fits=ram <= budget.ram,
    )


def choose(fits: Sequence[Fit]) -> tuple[Fit | None, str]:
    """The best of those that fit, and why."""
    possible = [each for each in fits if each.fits]
    whole = [each for each in possible if each.whole]
    if not possible:
        return None, "no level fits into this memory"
    if not whole:
        most = max(possible, key=lambda each: (each.offloaded / each.layers, *_quality(each)))
        share = f"{most.offloaded} of {most.layers} layers"
        return most, f"none fits entirely on the GPU; {share} of this one do, the most"
    best = max(whole, key=_quality)
    if best.full_precision:
        return best, "the model as it is, without quantization, fits entirely"
    if best.kld_mean is not None:
        return best, f"the least divergence ({best.kld_mean:.4f}) of {_those(whole)}"
    if best.ppl is not None:
        return best, f"the lowest perplexity ({best.ppl:.4f}) of {_those(whole)}"
    return best, f"the most bits of {_those(whole)}; no measurements yet"


def best_level(fits: Sequence[Fit]) -> Fit | None:
    """The best level that fits entirely on the GPU, beside a full-precision model that does."""
    levels = [each for each in fits if each.fits and each.whole and not each.full_precision]
    return max(levels, key=_quality, default=None)


def _those(whole: Sequence[Fit]) -> str:
    return f"the {len(whole)} that fit entirely" if len(whole) > 1 else "the one that fits entirely"


def _quality(each: Fit) -> tuple[float, float, int]:
    worst = float("-inf")
    if each.full_precision:
        return 0.0, 0.0, each.bytes
    # what is measured counts before what is not
    kld = worst if each.kld_mean is None else -each.kld_mean
    return kld, worst if each.ppl is None else -each.ppl, each.bytes


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        raise TypeError  # float(False) is 0
    return None if value is None else float(value)


def measured(table: Path) -> dict[str, dict[str, Any]]:
    """The rows of a report.json, or of what `minitron ppl --json` printed, by level."""
    try:
        rows = json.loads(table.read_text())["rows"]
        keys = ("ppl", "kld_mean")
        return {row["level"]: {key: _number(row[key]) for key in keys} for row in rows}
    except FileNotFoundError as error:
        raise NotFound(f"{table} does not exist") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Damaged(
            f"{table} is not a table of measurements", "minitron ppl MODEL… --json prints one"
        ) from error
