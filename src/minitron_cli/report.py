"""The report of a job: the published table as Markdown, CSV and JSON, with how it was made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitron_cli.doctor import versions
from minitron_cli.jobs import Job
from minitron_cli.output import csv_table, markdown_table
from minitron_cli.tables import PUBLISHED, measured_document, published_cells
from minitron_quant.measure.table import Row
from minitron_quant.quantize.batch import LevelResult
from minitron_quant.quantize.job import model_name
from minitron_quant.whole_files import write_whole


def write_reports(
    job: Job,
    full: Path,
    imatrix: Path | None,
    rows: Sequence[Row],
    results: Sequence[LevelResult],
    folder: Path,
) -> None:
    """Write report.md, report.csv and report.json, as the job asks."""
    document = _document(job, full, imatrix, rows, results)
    cells = [published_cells(row) for row in rows]
    texts = {
        "md": lambda: _markdown(document, cells),
        "csv": lambda: csv_table(PUBLISHED, cells),
        "json": lambda: _json(document),
    }
    for kind in job.output.report:
        write_whole(folder / f"report.{kind}", texts[kind]())


def _document(
    job: Job,
    full: Path,
    imatrix: Path | None,
    rows: Sequence[Row],
    results: Sequence[LevelResult],
) -> dict[str, Any]:
    text = job.measure.text
    return {
        "model": model_name(full),
        "reference": full.name,
        "imatrix": imatrix.name if imatrix else None,
        "calibration": [path.name for path in job.calibration.text],
        **measured_document(Path(text.name) if text else Path(), job.measure.ctx, rows),
        "sha256": {result.path.name: result.sha256 for result in results},
        "versions": versions(),
    }


def _json(document: dict[str, Any]) -> str:
    import json

    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _markdown(document: dict[str, Any], cells: Sequence[Sequence[str]]) -> str:
    made = " · ".join(f"{name} {number}" for name, number in document["versions"].items())
    calibration = ", ".join(document["calibration"]) or "none"
    return (
        f"# {document['model']}\n\n"
        f"{markdown_table(PUBLISHED, cells)}\n"
        f"Sizes in MiB. Perplexity of {document['text']}: {document['chunks']} chunks of "
        f"{document['ctx']} tokens, the second half of each scored, as llama-perplexity does. "
        f"Accuracy is 100 × PPL of {document['reference']} / PPL. "
        f"Importance matrix from: {calibration}.\n\n"
        f"Made with {made}.\n"
    )
