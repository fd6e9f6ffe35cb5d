"""minitron verify: a GGUF file is what its checkpoint says."""

from typing import Annotated

import typer

from minitron_cli.parameters import Json, ModelPath, Quiet, Revision, SourceName, Verbose

EXAMPLES = """minitron verify examples/nano-llama Nano-Llama-8.0M-BF16.gguf
minitron verify nvidia/Minitron-4B-Base minitron-4b-Q4_K_M.gguf --no-logits --json"""


def verify(
    source: SourceName,
    model: ModelPath,
    revision: Revision = None,
    logits: Annotated[
        bool,
        typer.Option(
            help="Compare logits with transformers where it is installed; it takes four bytes "
            "of memory for every weight."
        ),
    ] = True,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Compare a GGUF file with its checkpoint: keys, tensors, values, token ids, logits."""
    from minitron_cli.models import local_model
    from minitron_cli.output import Output
    from minitron_cli.sources import open_checkpoint_source
    from minitron_cli.verification import verify_model
    from minitron_convert.convert import ConvertSettings

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    found_model = local_model(model, out)
    with (
        out.progress() as listener,
        open_checkpoint_source(source, revision, listener) as found,
    ):
        settings = ConvertSettings(found.folder, name=found.name)
        result = verify_model(settings, found_model, logits, listener)
    for name, reason in result.skipped.items():
        out.note(f"{name} not compared: {reason}")
    checks = [check.__dict__ for check in result.checks]
    document = {
        "source": source,
        "model": str(model),
        "passed": result.passed,
        "checks": checks,
        "skipped": [{"name": name, "reason": why} for name, why in result.skipped.items()],
    }
    lines = [
        f"{'passed' if check.passed else 'FAILED':8} {check.name:10} {check.detail}"
        for check in result.checks
    ]
    out.result(document, "\n".join(lines))
    if not result.passed:
        raise typer.Exit(1)
