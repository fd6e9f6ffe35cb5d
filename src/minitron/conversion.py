"""A checkpoint becomes a GGUF file of any output type: full precision, or a level."""

from dataclasses import replace

from minitron_convert.convert import ConvertResult, ConvertSettings, convert
from minitron_convert.plan import OUTTYPES
from minitron_core.errors import Usage
from minitron_core.progress import Progress, ignore
from minitron_quant.levels import Level, level_named


def parse_outtype(text: str, *, vocab_only: bool = False) -> str | Level:
    """The output type of this name: one of the converter's, or a level.

    Unsupported: no type or level has the name; the hint names the nearest levels. Usage: a level
    for a vocabulary, which has no weights.
    """
    if text.lower() in OUTTYPES:
        return text.lower()
    level = level_named(text)
    if vocab_only:
        raise Usage("--vocab-only leaves no weights to quantize", "drop --vocab-only or --outtype")
    return level


def convert_to(
    settings: ConvertSettings, outtype: str | Level, progress: Progress = ignore
) -> ConvertResult:
    """Convert to an output type as `parse_outtype` returns it, whatever `settings.outtype` says.

    Errors: those of convert(); ImatrixNeeded: the level cannot be encoded without a matrix.
    """
    if isinstance(outtype, str):
        return convert(replace(settings, outtype=outtype), progress)
    # llama.cpp is loaded only where it is needed
    from minitron.level_conversion import convert_to_level

    return convert_to_level(settings, outtype, progress)
