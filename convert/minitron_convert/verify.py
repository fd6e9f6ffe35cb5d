"""Checking a GGUF file against its checkpoint: keys, tensors, values, tokens, logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron_convert.checkpoint.tensor_ref import Array
from minitron_convert.encode import decode
from minitron_convert.encode_stream import float_rows
from minitron_convert.plan import ConvertSettings, Plan, PlannedTensor, plan
from minitron_core.gguf import TYPE, Gguf, TensorInfo, iterate_tensors, open_shards
from minitron_core.progress import Event, Progress, ignore
from minitron_core.quoting import quoted

Encode = Callable[[str], list[int]]
Logits = Callable[[list[int]], Array]

# bits of a mantissa, the hidden one included, and the exponent of the smallest number
EXACT = {"f32": (24, -149), "f16": (11, -24), "bf16": (8, -133)}
LARGEST_ERROR = 0.9
LOGITS_ERROR = 0.02  # of a file in floats: llama.cpp multiplies and caches in 16 bits
ROWS = 64
# These tell about the file and its names, not what the model is.
IGNORED_PREFIXES = ("general.", "split.", "quantize.")
ARCHITECTURE = "general.architecture"
TEXTS = (
    "The old man walked down to the sea.",
    "  Two spaces, a\ttab\n\nand empty lines  ",
    "It's 3.14159 or 1,000,000: they've counted, haven't they?",
    "def f(x):\n    return {'a': x ** 2}  # done",
    "Füße, naïve, Здравствуй, мир. 今日は東京へ行きます。 한국어 🦙🚀",
    "",
    " ",
    "\n\n\n \t \n",
    "a\u00a0b\u2003c e\u0301 ½ Ⅷ \u200d\ufeff",
    "العربية עברית ไทย हिन्दी Ελληνικά ١٢٣",
    "'RE you sure? I'll make it, WE'VE!!!!!!?????? ------=======",
)
# what a person reads: a model of the wrong kind has hundreds of differences
SHOWN = 6


@dataclass(frozen=True)
class Check:
    """One thing that was compared: whether it holds, and what was found."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class VerifyResult:
    """All checks of a file."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)


def verify(
    settings: ConvertSettings, model: Path, progress: Progress | None = None
) -> VerifyResult:
    """Compare the keys, tensors and values of `model` with `settings.source`.

    `model` is of any type; a first shard stands for all. What needs the model's own libraries and
    a running model, token ids and logits, is compared by the functions below.
    Errors: as plan() and open_gguf().
    """
    shards = open_shards(model)
    planned = plan(settings)
    checks = [_check_keys(planned, shards[0]), _check_tensors(planned, shards)]
    if checks[-1].passed:
        checks.append(_check_values(planned, shards, progress or ignore))
    return VerifyResult(tuple(checks))


def _check_keys(planned: Plan, model: Gguf) -> Check:
    wanted = {
        entry.key: entry
        for entry in planned.files[0].metadata
        if entry.key == ARCHITECTURE or not entry.key.startswith(IGNORED_PREFIXES)
    }
    wrong = [
        f"{key} is missing" if key not in model.metadata else f"{key} differs"
        for key, entry in wanted.items()
        if model.metadata.get(key) != entry
    ]
    return Check("keys", not wrong, _listed(wrong) or f"{len(wanted)} keys agree")


def _check_tensors(planned: Plan, shards: list[Gguf]) -> Check:
    wanted = {spec.name: spec.shape for spec in planned.tensors}
    found = {info.name: info.shape for _, info in iterate_tensors(shards)}
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is not of this model" for name in found if name not in wanted]
    wrong += [
        f"{name} has the shape {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    return Check("tensors", not wrong, _listed(wrong) or f"{len(wanted)} names and shapes agree")


def _listed(wrong: list[str]) -> str:
    more = len(wrong) - SHOWN
    return "; ".join(wrong[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _check_values(planned: Plan, shards: list[Gguf], progress: Progress) -> Check:
    sources = {tensor.spec.name: tensor for file in planned.files for tensor in file.tensors}
    wrong, worst, skipped, last_bit = [], (0.0, ""), 0, 0
    tensors = list(iterate_tensors(shards))
    for number, (shard, info) in enumerate(tensors, 1):
        error = tensor_error(sources[info.name], shard.data(info), info)
        progress(Event("verify", number, len(tensors), "tensors", info.name))
        if error is None:
            skipped += 1
            continue
        worst = max(worst, (error, info.name))
        last_bit += _is_exponential(info.name) and error > 0
        if not error <= tolerance(info.type) * (1 + _is_exponential(info.name)):
            told = f"off by {error:.2g}" if error < math.inf else "not the source's, rounded"
            wrong.append(f"{info.name} ({TYPE[info.type].name}) is {told}")
    told = f"{len(tensors) - skipped} tensors agree, "
    told += f"{worst[1]} least, to {worst[0]:.2g}" if worst[0] else "all exactly"
    if last_bit:
        told += f"; {last_bit} ssm_a differ in the last bit, as exp does between processors"
    if skipped:
        told += f"; {skipped} are of types that cannot be decoded here"
    return Check("values", not wrong, _listed(wrong) or told)


def _is_exponential(name: str) -> bool:
    """Whether a tensor was computed by exp, whose last bit depends on the library."""
    return name.endswith(".ssm_a")


def tolerance(tensor_type: int) -> float:
    """The largest relative error that a type's rounding explains: RMS of error over RMS of values.

    Half a unit in the last place for floats. For blocks three times the step between 2^bits values
    evenly spread over a normal distribution, below what another tensor's values would give (1.4).
    """
    kind = TYPE[tensor_type]
    if kind.name in EXACT:
        return float(2.0 ** -EXACT[kind.name][0])
    if kind.name.startswith("tq"):
        return LARGEST_ERROR  # three values for weights that were not trained for them
    bits = 8 * kind.block_bytes / kind.block_elements
    return float(min(LARGEST_ERROR, 3.2 * 2.0**-bits))


def tensor_error(source: PlannedTensor, data: Array, info: TensorInfo) -> float | None:
    """RMS of (file − source) over RMS of the source; None if the type cannot be decoded here.

    Of floats every single value must be the source's, rounded: infinite where one is not. What
    exp has computed may be off by one in the last place.
    """
    total = difference = 0.0
    rows = source.source.rows
    step = max(1, ROWS // source.source.step) * source.source.step
    row_bytes = info.nbytes // rows if rows else 0
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        wanted = float_rows(source, start, stop).astype(np.float64)
        try:
            found = decode(data[start * row_bytes : stop * row_bytes], info.type)
        except NotImplementedError:
            return None
        off = np.abs(found.reshape(wanted.shape) - wanted)
        units = 2 if _is_exponential(info.name) else 1
        if (off > units * _half_a_unit(wanted, info.type)).any():
            return math.inf
        total += float((wanted**2).sum())
        difference += float((off**2).sum())
    if math.isnan(difference):
        return math.inf
    return math.sqrt(difference / total) if total else math.sqrt(difference)


def _half_a_unit(values: Array, tensor_type: int) -> Array:
    """What rounding to a float type may change; without bounds for types of blocks."""
    if TYPE[tensor_type].name not in EXACT:
        return np.full_like(values, math.inf)
    bits, smallest = EXACT[TYPE[tensor_type].name]
    return np.abs(values) * 2.0**-bits + 2.0 ** (smallest - 1)


def check_token_ids(source: Encode, model: Encode) -> Check:
    """Compare two tokenizers over texts of several scripts, code and odd white space."""
    for text in TEXTS:
        wanted, found = source(text), model(text)
        if wanted != found:
            return Check("token ids", False, f"{quoted(text)} gives {found}, not {wanted}")
    return Check("token ids", True, f"{len(TEXTS)} texts give the same ids")


def check_logits(tokens: list[int], source: Logits, model: Logits, types: set[int]) -> Check:
    """Compare the logits, [tokens, vocabulary], of the source and of a file of these `types`.

    The error is the RMS of the difference over the RMS of the source's logits around their mean.
    """
    wanted, found = source(tokens).astype(np.float64), model(tokens).astype(np.float64)
    if wanted.shape != found.shape or not np.isfinite(found).all():
        return Check(
            "logits",
            False,
            f"they are {list(found.shape)}, not {list(wanted.shape)}, or not finite",
        )
    spread = wanted - wanted.mean(axis=-1, keepdims=True)
    error = math.sqrt(((found - wanted) ** 2).mean() / (spread**2).mean())
    same = float((found.argmax(-1) == wanted.argmax(-1)).mean())
    floats = all(TYPE[kind].name in EXACT for kind in types)
    return Check(
        "logits",
        error <= (LOGITS_ERROR if floats else LARGEST_ERROR),
        f"{len(tokens)} tokens: off by {error:.2g}, "
        f"the likeliest token agrees in {100 * same:.1f} %",
    )
