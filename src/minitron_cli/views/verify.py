"""What `minitron verify` shows, and the exit code that it leaves with."""

from dataclasses import asdict
from pathlib import Path

from minitron.verification import verify
from minitron_cli.inputs import local_model, open_checkpoint_source
from minitron_cli.output import Output
from minitron_convert.convert import ConvertSettings
from minitron_quant.inspect.integrity import check_manifest

_FAILED, _DAMAGED = 1, 8


def against_checkpoint(
    out: Output, source: str, revision: str | None, model: Path, logits: bool
) -> int:
    """A line for every comparison of a file with its checkpoint."""
    found_model = local_model(model, out)
    with (
        out.progress() as listener,
        open_checkpoint_source(source, revision, listener) as found,
    ):
        settings = ConvertSettings(found.folder, name=found.name)
        result = verify(settings, found_model, logits=logits, progress=listener)
    for name, reason in result.skipped.items():
        out.note(f"{name} not compared: {reason}")
    document = {
        "source": source,
        "model": str(model),
        "passed": result.passed,
        "checks": [check.__dict__ for check in result.checks],
        "skipped": [{"name": name, "reason": why} for name, why in result.skipped.items()],
    }
    lines = [
        f"{'passed' if check.passed else 'FAILED':8} {check.name:10} {check.detail}"
        for check in result.checks
    ]
    out.result(document, "\n".join(lines))
    return 0 if result.passed else _FAILED


def against_manifest(out: Output, manifest: Path) -> int:
    """A line for every file that a manifest names."""
    with out.progress() as listener:
        files = check_manifest(manifest, listener)
    passed = all(file.passed for file in files)
    document = {
        "manifest": str(manifest),
        "passed": passed,
        "files": [asdict(file) for file in files],
    }
    lines = [
        f"{file.state if file.passed else file.state.upper():8} {file.name}"
        + ("" if file.needed or file.state != "missing" else " (made from it; not needed)")
        for file in files
    ]
    out.result(document, "\n".join(lines))
    return 0 if passed else _DAMAGED
