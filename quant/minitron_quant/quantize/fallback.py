"""Types that llama.cpp replaces because a tensor's rows do not fill their blocks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from minitron_core.gguf import TYPE, TensorInfo

if TYPE_CHECKING:
    from minitron_quant.quantize.plan import TypePlan

_LINE = re.compile(r"warning: (?P<name>\S+) +- ncols +\d+ not divisible by .* falling back to .*")
_SHOWN = 3  # levels in the note


def replaced_tensors(lines: Sequence[str]) -> frozenset[str]:
    """The tensors that llama.cpp's dry run says it gives another type than the level's."""
    return frozenset(found["name"] for line in lines if (found := _LINE.match(line)))


def fallback_note(plan: TypePlan) -> tuple[str, ...]:
    """A note with the number of tensors, the length of their rows and the types they get."""
    names = {name for planned in plan.levels for name in planned.replaced}
    if not names:
        return ()
    told = []
    for planned in plan.levels:
        types = Counter(TYPE[planned.types[name]].name for name in sorted(planned.replaced))
        if types:
            counts = ", ".join(f"{name} for {count}" for name, count in types.most_common())
            told.append(f"{planned.level.name}: {counts}")
    more = f"; and so in {len(told) - _SHOWN} more levels" if len(told) > _SHOWN else ""
    rows = _rows(plan.tensors[name][1] for name in names)
    return (
        f"{len(names)} of {len(plan.tensors)} tensors have rows of {rows}, which blocks of 256 do "
        f"not fit: llama.cpp gives them larger types ({'; '.join(told[:_SHOWN])}{more})",
    )


def _rows(infos: Iterable[TensorInfo]) -> str:
    lengths = sorted({info.shape[0] for info in infos})
    return " or ".join(str(length) for length in lengths)
