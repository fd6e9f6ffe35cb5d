"""Which level fits: weights, KV cache and compute buffers against the memory there is."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitron_cli.output import Output
from minitron_cli.units import show_size
from minitron_core.errors import Damaged, NotFound
from minitron_core.gguf import iterate_tensors, layer_number
from minitron_engine.llama.context import ContextSettings
from minitron_engine.memory.estimate import Needs, measure_needs
from minitron_quant.levels import LEVELS, level_of_ftype
from minitron_quant.model_files import models_in, open_model_files
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.plan import make_plan

# what a CUDA context takes before the first buffer
RESERVE = 512 << 20
_INPUT, _OUTPUT = "token_embd.weight", "output.weight"
_FULL = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Budget:
    """Bytes of a GPU's memory and of the machine's; `reserve` of the first is not ours."""

    vram: int
    ram: int
    reserve: int = RESERVE


@dataclass(frozen=True)
class Candidate:
    """A level, there (`path`) or planned: the bytes of its input, layers and output."""

    level: str
    path: Path | None
    bytes: int
    layers: tuple[int, ...]
    input: int
    output: int


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
    layers: dict[int, int] = {}
    rest = dict.fromkeys((_INPUT, _OUTPUT, ""), 0)
    for name, size in tensors:
        layer = layer_number(name)
        if layer is not None:
            layers[layer] = layers.get(layer, 0) + size
        else:
            rest[name if name in rest else ""] += size
    # llama.cpp makes an output of the input where a model has none of its own
    output = rest[_OUTPUT] or rest[_INPUT]
    total = sum(layers.values()) + sum(rest.values())
    ordered = tuple(layers[number] for number in sorted(layers))
    return Candidate(level, path, total, ordered, rest[_INPUT], output + rest[""])


def needs_of(model: Path, settings: ContextSettings) -> Needs:
    """KV cache and buffers; they are the same for all levels of a model."""
    if model.is_dir():
        model = next(each.path for each in candidates(model) if each.path is not None)
    return measure_needs(model, settings)


def fit(candidate: Candidate, needs: Needs, budget: Budget) -> Fit:
    """As many layers on the GPU as fit, from the output backwards, as llama.cpp places them."""
    cache = needs.cache / needs.layers
    onto_gpu = [candidate.output, *(size + cache for size in reversed(candidate.layers))]
    offloaded, vram = 0, 0.0
    taken = float(budget.reserve + needs.compute)
    for number, size in enumerate(onto_gpu, 1):
        taken += size
        if taken > budget.vram:
            break
        offloaded, vram = number, taken
    ram = candidate.input + needs.compute + sum(onto_gpu[offloaded:])
    return Fit(
        level=candidate.level,
        path=None if candidate.path is None else str(candidate.path),
        bytes=candidate.bytes,
        weights=candidate.bytes,
        cache=needs.cache,
        compute=needs.compute,
        vram=round(vram),
        ram=round(ram),
        layers=len(onto_gpu),
        offloaded=offloaded,
        fits=ram <= budget.ram,
    )


def choose(fits: Sequence[Fit]) -> tuple[Fit | None, str]:
    """The best of those that fit, and why."""
    possible = [each for each in fits if each.fits]
    whole = [each for each in possible if each.whole]
    if not possible:
        return None, "no level fits into the memory there is"
    if not whole:
        most = max(possible, key=lambda each: (each.offloaded / each.layers, *_quality(each)))
        share = f"{most.offloaded} of {most.layers} layers"
        return most, f"none fits into the GPU's memory whole; of this one {share} do, the most"
    best = max(whole, key=_quality)
    if best.kld_mean is not None:
        return best, f"the least divergence ({best.kld_mean:.4f}) of {_those(whole)}"
    if best.ppl is not None:
        return best, f"the lowest perplexity ({best.ppl:.4f}) of {_those(whole)}"
    return best, f"the most bits of {_those(whole)}; nothing is measured yet"


def _those(whole: Sequence[Fit]) -> str:
    return f"the {len(whole)} that fit whole" if len(whole) > 1 else "the one that fits whole"


def _quality(each: Fit) -> tuple[float, float, int]:
    # what is measured counts before what is not
    worst = float("-inf")
    kld = worst if each.kld_mean is None else -each.kld_mean
    return kld, worst if each.ppl is None else -each.ppl, each.bytes


def _number(value: Any) -> float | None:
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
            f"{table} is no table of measurements", "minitron ppl MODEL… --json prints one"
        ) from error


def document(fits: Sequence[Fit], budget: Budget, ctx: int) -> dict[str, Any]:
    """The advice as JSON."""
    best, why = choose(fits)
    return {
        **asdict(budget),
        "ctx": ctx,
        "choice": best and best.level,
        "path": best and best.path,
        "why": why,
        "levels": [asdict(each) for each in fits],
    }


def show(out: Output, fits: Sequence[Fit], budget: Budget) -> None:
    """The advice for people; the level chosen first, then what every level takes."""
    best, why = choose(fits)
    if best is None:
        out.text(f"Nothing fits: {why}.")
    else:
        memory = f"{show_size(best.vram)} of {show_size(budget.vram)} on the GPU"
        out.text(f"{best.level}: {why}.\n{memory}, {show_size(best.ram)} of RAM.")
    out.text("")
    headers = ["Level", "Weights", "KV cache", "Compute", "On the GPU", "Layers", "RAM"]
    measured_too = any(each.ppl is not None for each in fits)
    out.table(headers + ["PPL", "KLD"] * measured_too, [_cells(e, measured_too) for e in fits])


def _cells(each: Fit, measured_too: bool) -> list[str]:
    sizes = [each.weights, each.cache, each.compute, each.vram]
    cells = [
        each.level,
        *map(show_size, sizes),
        f"{each.offloaded}/{each.layers}",
        show_size(each.ram) + ("" if each.fits else " !"),
    ]
    if measured_too:
        cells += ["" if each.ppl is None else f"{each.ppl:.4f}"]
        cells += ["" if each.kld_mean is None else f"{each.kld_mean:.4f}"]
    return cells
