"""A checkpoint becomes a GGUF file of any output type: full precision, or a level."""

from dataclasses import replace
from importlib.metadata import version

from minitron_convert.checkpoint.file_names import files_of
from minitron_convert.convert import ConvertResult, ConvertSettings
from minitron_convert.convert import convert as convert_checkpoint
from minitron_convert.outtypes import OUTTYPES
from minitron_core.errors import AlreadyExists, Usage
from minitron_core.made_from import inputs_key, is_made_from, record_inputs
from minitron_core.progress import Progress, ignore
from minitron_quant.levels import Level, level_named


def convert(settings: ConvertSettings, progress: Progress = ignore) -> ConvertResult:
    """Convert a Hugging Face checkpoint to GGUF; a file that was made from the same is kept.

    `settings.outtype` is auto, f32, f16, bf16, q8_0, or a level that needs no importance matrix.
    The result has the paths of the files and their size in bytes.
    Raises NotFound, Unsupported, AlreadyExists, OutOfResources, Denied, Damaged and, for a level,
    ImatrixNeeded; then no file is left.
    """
    outtype = parse_outtype(settings.outtype, vocab_only=settings.vocab_only)
    key = _inputs_key(settings)
    try:
        result = _convert(settings, outtype, progress)
    except AlreadyExists:
        planned = _convert(replace(settings, dry_run=True), outtype, progress)
        if not is_made_from(planned.paths, key):
            raise
        return replace(planned, dry_run=False, kept=True)
    if not settings.dry_run:
        record_inputs(result.paths, key)
    return result


def _inputs_key(settings: ConvertSettings) -> str:
    metadata = settings.metadata
    files = [*files_of(settings.source), *([metadata] if metadata and metadata.is_file() else [])]
    chosen = settings.outtype.lower(), settings.vocab_only, settings.split_max_size, settings.name
    return inputs_key(files, "convert", version("minitron"), *chosen)


def _convert(settings: ConvertSettings, outtype: str | Level, progress: Progress) -> ConvertResult:
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
