"""The levels: what a user asks for, and the llama_ftype that llama.cpp knows it by.

This table is the only list of levels: help texts, completion, job files and the manual read it, so
that a new level is one row. Ids are llama_ftype of llama.h. Bits per weight are those that
llama-quantize's help states for an 8-billion-parameter Llama, as orientation only:
`minitron quantize --dry-run` counts exactly.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minitron_core.errors import Unsupported

if TYPE_CHECKING:
    from minitron_core.gguf import Gguf

ALL = "all"
# the metadata key that names the recipe of a file made for a size
LEVEL_KEY = "minitron.level"


@dataclass(frozen=True)
class Level:
    """A recipe of tensor types.

    ftype: llama_ftype. bits: per weight. needs_imatrix: for dense models; the plan decides.
    aliases: other names for it.
    """

    name: str
    ftype: int
    bits: float
    needs_imatrix: bool = False
    aliases: tuple[str, ...] = ()


# those that `all` stands for
LEVELS = (
    Level("IQ1_S", 24, 1.56, needs_imatrix=True),
    Level("IQ1_M", 31, 1.75, needs_imatrix=True),
    Level("IQ2_XXS", 19, 2.06, needs_imatrix=True),
    Level("IQ2_XS", 20, 2.31, needs_imatrix=True),
    Level("IQ2_S", 28, 2.5, needs_imatrix=True),
    Level("IQ2_M", 29, 2.7, needs_imatrix=True),
    Level("Q2_K_S", 21, 2.79, needs_imatrix=True),
    Level("Q2_K", 10, 2.96),
    Level("IQ3_XXS", 23, 3.06, needs_imatrix=True),
    Level("IQ3_XS", 22, 3.3, needs_imatrix=True),
    Level("Q3_K_S", 11, 3.41),
    Level("IQ3_S", 26, 3.44),
    Level("IQ3_M", 27, 3.66),
    Level("Q3_K_M", 12, 3.74, aliases=("Q3_K",)),
    Level("Q3_K_L", 13, 4.03),
    Level("IQ4_XS", 30, 4.25),
    Level("Q4_0", 2, 4.34),
    Level("IQ4_NL", 25, 4.5),
    Level("Q4_K_S", 14, 4.37),
    Level("Q4_K_M", 15, 4.58, aliases=("Q4_K",)),
    Level("Q4_1", 3, 4.78),
    Level("Q5_K_S", 16, 5.21),
    Level("Q5_0", 8, 5.21),
    Level("Q5_K_M", 17, 5.33, aliases=("Q5_K",)),
    Level("Q5_1", 9, 5.65),
    Level("Q6_K", 18, 6.14),
    Level("Q8_0", 7, 7.96),
)
OTHER_LEVELS = (
    Level("TQ1_0", 36, 1.69),
    Level("TQ2_0", 37, 2.06),
    Level("MXFP4_MOE", 38, 4.25),
    Level("Q1_0", 40, 1.125),
    Level("Q2_0", 41, 2.25),
    Level("F16", 1, 16.0),
    Level("BF16", 32, 16.0),
    Level("F32", 0, 32.0),
)

_BY_NAME = {name: level for level in LEVELS + OTHER_LEVELS for name in (level.name, *level.aliases)}
_BY_FTYPE = {level.ftype: level for level in LEVELS + OTHER_LEVELS}


def level_choices() -> list[str]:
    """What a user may write for levels: `all`, every name, every alias."""
    return [ALL, *_BY_NAME]


def level_help() -> str:
    """The names of all levels, as a help text lists them."""
    usual, others = (" ".join(level.name for level in part) for part in (LEVELS, OTHER_LEVELS))
    return f"{usual}, or {ALL} of these; also {others}."


def level_named(name: str) -> Level:
    """The level with this name or alias, in any case; Unsupported suggests similar names."""
    level = _BY_NAME.get(name.upper())
    if level is not None:
        return level
    near = difflib.get_close_matches(name.upper(), [*_BY_NAME], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`minitron quantize --help` lists them"
    raise Unsupported(f"there is no level called {name}", hint)


def parse_levels(names: Iterable[str]) -> list[Level]:
    """Levels in the order given, each once; `all` stands for the 27 from IQ1_S to Q8_0."""
    chosen: dict[str, Level] = {}
    for name in names:
        for level in LEVELS if name.lower() == ALL else (level_named(name),):
            chosen[level.name] = level
    return list(chosen.values())


def level_of_ftype(ftype: int | None) -> str:
    """The name of the level that a file's general.file_type stands for, or an empty string."""
    return _BY_FTYPE[ftype].name if ftype in _BY_FTYPE else ""


def level_of(header: "Gguf") -> str:
    """The level of a model file, or its recipe's name; an empty string where it has neither."""
    return header.get(LEVEL_KEY) or level_of_ftype(header.get("general.file_type"))
