"""Tensors that have another type than their level wants, because their rows do not fit its blocks.

llama.cpp takes q5_0 for q4_K, for example, where a row is not divisible by 256, and goes on: a
file of that level may have few tensors of it (tensor_type_fallback of src/llama-quant.cpp).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from minitron_core.gguf import TYPE, Gguf, TensorInfo, iterate_tensors
from minitron_quant.levels import LEVEL_KEY, level_of_ftype

_LINE = re.compile(
    r"warning: (?P<name>.+?) +- ncols +(?P<columns>\d+) not divisible by +(?P<block>\d+) "
    r"\(required for type +(?P<wanted>\w+)\) .*-> falling back to +(?P<given>\w+)"
)
_SUPER_BLOCK, _BLOCK = 256, 32
# what takes the place of types with blocks of 256
_GIVEN = frozenset(("iq4_nl", "q4_0", "q5_0", "q5_1", "q8_0"))
# levels that want these types, or others without blocks of 256, on purpose
_WANTING = frozenset(("", "F32", "F16", "BF16", "MXFP4_MOE"))
_WITH_Q8_0 = frozenset(("Q8_0", "MXFP4_MOE"))
_OUTPUT_IN_Q5 = frozenset(
    ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS")  # others have q6_K
)
_FEW = 3  # levels named one by one


@dataclass(frozen=True)
class Fallback:
    """Tensors of one level: the type that it wants, with blocks of so many, and the one given."""

    wanted: str
    given: str
    block: int
    tensors: int

    def __str__(self) -> str:
        return f"{self.tensors} {self.given} instead of {self.wanted}"


def read_fallbacks(
    lines: Sequence[str], output: TensorInfo | None = None, level: str = ""
) -> tuple[Fallback, ...]:
    """Those of a level, from what llama.cpp logs in a dry run.

    output: the matrix of the output, if its type was left to llama.cpp and is q8_0, which llama.cpp
    also takes without a word where the rows do not fit.
    """
    matches = [match for match in map(_LINE.search, lines) if match]
    found = Counter((match["wanted"], match["given"], int(match["block"])) for match in matches)
    silent = output is not None and not any(
        output.name in line for line in lines if "[" not in line
    )
    if silent and output is not None and output.shape[0] % _SUPER_BLOCK and level not in _WITH_Q8_0:
        found["q5_K" if level in _OUTPUT_IN_Q5 else "q6_K", "q8_0", _SUPER_BLOCK] += 1
    return tuple(Fallback(*types, count) for types, count in found.items())


def fallbacks_in(shards: Sequence[Gguf]) -> dict[str, int]:
    """The number of tensors of each type that a model's file has in place of its level's."""
    first = shards[0]
    level = level_of_ftype(first.get("general.file_type"))
    if level in _WANTING or LEVEL_KEY in first.metadata:
        return {}
    found: Counter[str] = Counter()
    for _, info in iterate_tensors(list(shards)):
        given, columns = TYPE[info.type].name, info.shape[0] if info.shape else 0
        if len(info.shape) < 2 or not info.name.endswith(".weight") or given == level.lower():
            continue
        unusual = given == "f16" and columns % _BLOCK
        if unusual or (given in _GIVEN and columns % _SUPER_BLOCK):
            found[given] += 1
    return dict(found)


def described(fallbacks: Sequence[Fallback]) -> str:
    """How many tensors of which types, in words; empty without any."""
    return ", ".join(map(str, fallbacks))


def reason(fallbacks: Sequence[Fallback]) -> str:
    """Why, in words."""
    blocks = sorted({fallback.block for fallback in fallbacks})
    return f"rows that are not divisible by {' or '.join(map(str, blocks))}"


def fallback_notes(levels: dict[str, tuple[Fallback, ...]], total: int) -> tuple[str, ...]:
    """What to know of levels, by name, of a model with so many tensors before they are made."""
    fallen = {name: found for name, found in levels.items() if found}
    if len(fallen) > _FEW:
        most = max(sum(fallback.tensors for fallback in found) for found in fallen.values())
        every = [fallback for found in fallen.values() for fallback in found]
        return (
            f"in {len(fallen)} levels up to {most} of {total} tensors have other types than the "
            f"level's: {reason(every)}",
        )
    return tuple(
        f"{name}: {sum(fallback.tensors for fallback in found)} of {total} tensors have other types"
        f" than the level's ({described(found)}): {reason(found)}"
        for name, found in fallen.items()
    )
