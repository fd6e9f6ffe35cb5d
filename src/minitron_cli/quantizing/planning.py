"""What a quantization reads: a model, or for a plan only the header of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minitron_cli.inputs import local_model, model_header, on_the_hub
from minitron_cli.output import Output
from minitron_core.errors import Usage


@contextmanager
def quantize_source(model: Path, out: Output, plan_only: bool) -> Iterator[Path]:
    """The GGUF file that MODEL means; for a plan, a file of its header and size without weights.

    A plan takes a checkpoint too, a folder or on the Hub: its header is the one that converting
    it would write. Otherwise a checkpoint folder is a Usage error.
    """
    if not plan_only:
        if model.is_dir():
            raise Usage(
                f"{model} is a folder; of a checkpoint only --dry-run can be shown",
                f"convert it first: minitron convert {model}",
            )
        yield local_model(model, out)
    elif _is_checkpoint(model):
        with _converted_header(model, out) as path:
            yield path
    else:
        with model_header(model) as path:
            yield path


def _is_checkpoint(model: Path) -> bool:
    if model.exists():
        return model.is_dir()
    named = on_the_hub(model)
    return named is not None and named.needs_conversion()


@contextmanager
def _converted_header(model: Path, out: Output) -> Iterator[Path]:
    from minitron_cli.quantizing.direct import header_alone
    from minitron_cli.sources import open_checkpoint_source
    from minitron_convert.convert import ConvertSettings, plan

    with (
        out.progress() as listener,
        open_checkpoint_source(str(model), None, listener, headers_only=True) as found,
    ):
        planned = plan(ConvertSettings(source=found.folder, name=found.name))
        for note in planned.notes:
            out.note(note)
        with header_alone(planned.files[0]) as header:
            yield header.path
