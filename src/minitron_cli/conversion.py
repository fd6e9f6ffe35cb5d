"""A conversion to whatever --outtype asks for: a type of the converter's own, or a level."""

from dataclasses import replace

from minitron_cli.output import Listener
from minitron_convert.convert import ConvertResult, ConvertSettings, convert
from minitron_convert.plan import OUTTYPES
from minitron_core.errors import Usage
from minitron_quant.levels import Level, level_named


def parse_outtype(text: str, vocab_only: bool) -> str | Level:
    """A type of the converter's own, else a level. Unsupported names the nearest levels."""
    if text.lower() in OUTTYPES:
        return text.lower()
    level = level_named(text)
    if vocab_only:
        raise Usage("--vocab-only leaves no weights to quantize", "drop it, or the --outtype")
    return level


def convert_to(
    settings: ConvertSettings, outtype: str | Level, listener: Listener
) -> ConvertResult:
    """Convert to what parse_outtype found."""
    if isinstance(outtype, str):
        return convert(replace(settings, outtype=outtype), listener)
    # llama.cpp is loaded only where it is needed
    from minitron_cli.quantizing.direct import convert_to_level

    return convert_to_level(settings, outtype, listener)
