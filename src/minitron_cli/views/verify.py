"""Comparisons of a file with its checkpoint, and of files with a manifest.

Each view returns the exit code.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from minitron.verification import Verification
from minitron_cli.output import Output
from minitron_quant.inspect.integrity import Checked

_FAILED, _DAMAGED = 1, 8


def show_verification(out: Output, source: str, model: Path, result: Verification) -> int:
    """A line for every comparison of a file with its checkpoint."""
    for name, reason in result.skipped.items():
        out.note(f"{name} not compared: {reason}")
    document = {
        "source": source,
        "model": str(model),
        "passed": result.passed,
        "checks": [asdict(check) for check in result.checks],
        "skipped": [{"name": name, "reason": why} for name, why in result.skipped.items()],
    }
    lines = [
        f"{'passed' if check.passed else 'FAILED':8} {check.name:10} {check.detail}"
        for check in result.checks
    ]
    out.result(document, "\n".join(lines))
    return 0 if result.passed else _FAILED


def show_files(out: Output, manifest: Path, files: Sequence[Checked]) -> int:
    """A line for every file that a manifest names."""
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
