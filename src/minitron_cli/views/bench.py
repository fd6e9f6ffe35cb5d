"""The measured speed of models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitron_cli.output import Output, TableFormat
from minitron_cli.units import show_size

# columns shown only where their values differ, by the fields of the rows
_SETTINGS = {
    "n_threads": "Threads",
    "n_gpu_layers": "GPU layers",
    "n_batch": "Batch",
    "n_ubatch": "Micro-batch",
    "type_k": "K",
    "type_v": "V",
    "flash_attn": "Flash",
}


def show_bench(out: Output, rows: Sequence[dict[str, Any]], table_format: TableFormat) -> None:
    """A table with a row for each test; CSV and JSON have llama-bench's fields."""
    if out.as_json:
        out.document(rows)
    elif table_format == "csv":
        fields = [field for field in rows[0] if not field.startswith("samples")]
        cells = [["" if row[f] is None else str(row[f]) for f in fields] for row in rows]
        out.table(fields, cells, "csv")
    else:
        _show_table(out, rows, table_format)


def _show_table(out: Output, rows: Sequence[dict[str, Any]], table_format: TableFormat) -> None:
    varied = [field for field in _SETTINGS if len({row[field] for row in rows}) > 1]
    energy = any(row["joules_per_token"] is not None for row in rows)
    headers = [
        "Model",
        "Size",
        *(_SETTINGS[field] for field in varied),
        "Test",
        "t/s",
        "±",
        "Memory",
    ]
    cells = [
        [
            Path(row["model_filename"]).name,
            show_size(row["model_size"]),
            *(str(row[field]) for field in varied),
            row["test"],
            f"{row['avg_ts']:.2f}",
            f"{row['stddev_ts']:.2f}",
            show_size(row["peak_memory_bytes"]),
            *([f"{row['joules_per_token'] or float('nan'):.3f}"] if energy else []),
        ]
        for row in rows
    ]
    out.table(headers + ["J/token"] * energy, cells, table_format)
    backend = rows[0]["gpu_info"] or rows[0]["cpu_info"]
    threads = "" if "n_threads" in varied else f"; {rows[0]['n_threads']} threads"
    out.note(f"{rows[0]['backends']}: {backend}{threads}")
