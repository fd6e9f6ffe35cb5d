"""A conversion, done or planned."""

from minitron_cli.output import Output
from minitron_cli.units import show_size
from minitron_convert.convert import ConvertResult
from minitron_core.gguf import TYPE


def show_conversion(out: Output, result: ConvertResult) -> None:
    """The files that were written, or with --dry-run every tensor that would be."""
    for note in result.notes:
        out.note(note)
    document = {
        "paths": [str(path) for path in result.paths],
        "model": result.model_name,
        "architecture": result.architecture,
        "outtype": result.outtype,
        "tensors": result.tensors,
        "bytes": result.bytes,
        "memory_bytes": result.memory,
        "notes": list(result.notes),
        "dry_run": result.dry_run,
        "kept": result.kept,
    }
    facts = f"{result.tensors} tensors, {result.outtype}, {show_size(result.bytes)}"
    paths = ", ".join(map(str, result.paths))
    if not result.dry_run:
        text = f"{paths} is up to date" if result.kept else f"wrote {paths}"
        out.result(document, f"{text} ({facts})")
        return
    specs = result.planned.tensors
    if out.as_json:
        names = ("name", "shape", "type", "bytes")
        rows = [(spec.name, spec.shape, TYPE[spec.type].name, spec.nbytes) for spec in specs]
        plan = [dict(zip(names, row, strict=True)) for row in rows]
        out.document({**document, "plan": plan})
        return
    out.table(
        ["Tensor", "Type", "Shape", "Bytes"],
        [
            [s.name, TYPE[s.type].name, " × ".join(map(str, s.shape)), f"{s.nbytes:,}"]
            for s in specs
        ],
        left=2,
    )
    out.text(f"would write {paths} ({facts}) with about {show_size(result.memory)} of memory")
