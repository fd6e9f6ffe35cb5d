"""minitron verify: compare a GGUF file with its checkpoint, or files with a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minitron_cli.options.parameters import ConsoleOptions, Revision

if TYPE_CHECKING:
    from minitron.verification import Verification
    from minitron_cli.output import Output

EXAMPLES = """minitron verify examples/nano-llama Nano-Llama-8.0M-BF16.gguf
minitron verify nvidia/Minitron-4B-Base minitron-4b-Q4_K_M.gguf --no-logits --json
minitron verify --manifest out/nano-llama.manifest.json"""


def verify(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE", help="A checkpoint folder, or owner/name[@revision] on the Hub."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="A .gguf file, or owner/name[:LEVEL] on the Hub."),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Check the files of a manifest by their SHA-256."),
    ] = None,
    revision: Revision = None,
    logits: Annotated[
        bool,
        typer.Option(
            help="Compare logits with transformers, where installed (4 bytes of memory per weight)."
        ),
    ] = True,
    *,
    console: ConsoleOptions,
) -> None:
    """Compare a GGUF file with its checkpoint: keys, tensors, values, token ids, logits."""
    from minitron_cli.views.verify import show_files, show_verification
    from minitron_core.errors import Usage

    out = console.output()
    if manifest is not None and source is None:
        from minitron_quant.inspect.integrity import check_manifest

        with out.progress() as listener:
            files = check_manifest(manifest, listener)
        raise typer.Exit(show_files(out, manifest, files))
    if manifest is not None or source is None or model is None:
        raise Usage("give SOURCE and MODEL, or --manifest FILE alone")
    result = _against_checkpoint(out, source, revision, model, logits)
    raise typer.Exit(show_verification(out, source, model, result))


def _against_checkpoint(
    out: Output, source: str, revision: str | None, model: Path, logits: bool
) -> Verification:
    from minitron import verification
    from minitron_cli.inputs import local_model, open_checkpoint_source
    from minitron_convert.convert import ConvertSettings

    path = local_model(model, out)
    with (
        out.progress() as listener,
        open_checkpoint_source(source, revision, listener) as found,
    ):
        settings = ConvertSettings(found.folder, name=found.name)
        return verification.verify(settings, path, logits=logits, progress=listener)
