"""Levels: those planned, those made, and those measured on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from minitron_cli.output import Output
from minitron_cli.units import show_mib, show_size, show_time
from minitron_quant.quantize.fallbacks import described

if TYPE_CHECKING:
    from minitron_quant.gptq.held_out import VerifiedLevel
    from minitron_quant.quantize.run import LevelResult


def level_line(result: LevelResult) -> str:
    """One line when a level is done, for someone who watches."""
    return (
        f"{result.level}: {show_size(result.bytes)}, {result.bits_per_weight:.2f} bits per weight, "
        f"{show_time(result.seconds)}"
    )


def show_levels(out: Output, results: Sequence[LevelResult]) -> None:
    """The levels that were made or were there already."""
    if out.as_json:
        out.document({"levels": [_describe(result) for result in results]})
        return
    kept = sum(result.kept for result in results)
    if kept:
        out.note(f"{kept} of {len(results)} files were there already and up to date")
    rows = [
        [
            r.level,
            show_mib(r.bytes / 2**20),
            f"{r.bits_per_weight:.2f}",
            described(r.fallbacks),
            str(r.path),
        ]
        for r in results
    ]
    headers = ["Level", "MiB", "Bits/weight", "Other types", "File"]
    if not any(r.fallbacks for r in results):
        headers, rows = _without(3, headers, rows)
    out.table(headers, rows)


def _without(
    column: int, headers: list[str], rows: list[list[str]]
) -> tuple[list[str], list[list[str]]]:
    kept = [cells[:column] + cells[column + 1 :] for cells in (headers, *rows)]
    return kept[0], kept[1:]


def _describe(result: LevelResult) -> dict[str, Any]:
    return {
        "level": result.level,
        "path": str(result.path),
        "bytes": result.bytes,
        "bpw": result.bits_per_weight,
        "seconds": result.seconds,
        "sha256": result.sha256,
        "types": result.types,
        "fallbacks": [asdict(fallback) for fallback in result.fallbacks],
        "kept": result.kept,
    }


def show_plan(out: Output, summary: dict[str, Any]) -> None:
    """What a run would make, and what that takes."""
    if out.as_json:
        out.document(summary)
        return
    rows = [
        [
            entry["level"],
            show_mib(entry["bytes"] / 2**20),
            f"{entry['bpw']:.2f}",
            ", ".join(f"{count} {name}" for name, count in entry["types"].items()),
        ]
        for entry in summary["levels"]
    ]
    out.table(["Level", "MiB", "Bits/weight", "Types"], rows)
    saved = f"{summary['work_saved_pct']:.0f} % saved"
    out.text(
        f"{show_size(summary['bytes'])} in all, {show_size(summary['free_bytes'])} free; "
        f"{summary['weights_encoded'] / 1e6:.0f} million weights to encode instead of "
        f"{summary['weights_without_sharing'] / 1e6:.0f} ({saved}), "
        f"about {show_time(summary['estimated_seconds'])}"
    )


def show_verified(out: Output, made: Sequence[VerifiedLevel]) -> None:
    """Levels made with GPTQ beside their plain files, measured on held-out text."""
    if out.as_json:
        out.document({"levels": [_verified_document(each) for each in made]})
        return
    rows = []
    for each in made:
        proof, result = each.comparison, each.result
        low, high = proof.interval_pct
        rows.append(
            [
                result.level,
                show_mib(result.bytes / 2**20),
                f"{proof.baseline_kld:.5f}",
                f"{proof.kld:.5f}",
                f"{proof.change_pct:+.1f} %",
                f"{low:+.1f} … {high:+.1f} %",
                str(result.path),
            ]
        )
        if not proof.better:
            out.note(f"{result.level}: GPTQ is not better on {proof.text}; the plain file is kept")
    headers = ["Level", "MiB", "KLD, plain", "GPTQ", "Change", "95 % interval", "File"]
    out.table(headers, rows)


def _verified_document(made: VerifiedLevel) -> dict[str, Any]:
    proof, result = made.comparison, made.result
    return {
        "level": result.level,
        "path": str(result.path),
        "bytes": result.bytes,
        "bpw": result.bits_per_weight,
        "sha256": result.sha256,
        "kept": "gptq" if proof.better else "plain",
        "text": proof.text,
        "chunks": proof.chunks,
        "plain_kld": proof.baseline_kld,
        "gptq_kld": proof.kld,
        "change_pct": proof.change_pct,
        "difference": [proof.difference.mean, proof.difference.low, proof.difference.high],
    }
