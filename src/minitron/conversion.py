"""A checkpoint becomes a GGUF file of any output type: full precision, or a level."""

from dataclasses import replace

from minitron_convert.convert import ConvertResult, ConvertSettings
from minitron_convert.convert import convert as convert_checkpoint
from minitron_convert.outtypes import OUTTYPES
from minitron_core.errors import Usage
from minitron_core.progress import Progress, ignore
from minitron_quant.levels import Level, level_named


def convert(settings: ConvertSettings, progress: Progress = ignore) -> ConvertResult:
    """Convert a Hugging Face checkpoint to GGUF.

    `settings.outtype` is auto, f32, f16, bf16, q8_0, or a level that needs no importance matrix.
    The result has the paths of the files and their size in bytes.
    Raises NotFound, Unsupported, AlreadyExists, OutOfResources, Denied, Damaged and, for a level,
    ImatrixNeeded; then no file is left.
    """
    outtype = parse_outtype(settings.outtype, vocab_only=settings.vocab_only)
    if isinstance(outtype, str):
        return convert_checkpoint(replace(settings, outtype=outtype), progress)
    # llama.cpp is loaded only where it is needed
    from minitron.level_conversion import convert_to_level

    return convert_to_level(replace(settings, outtype="auto"), outtype, progress)


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
