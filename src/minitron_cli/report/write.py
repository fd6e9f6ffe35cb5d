"""The report of a job: the published table with how it was made, as text, page and data."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_cli.doctor import versions
from minitron_cli.hub.card import File
from minitron_cli.hub.recommend import advice_lines
from minitron_cli.output import csv_table, markdown_table
from minitron_cli.pipeline.job_file import Job
from minitron_cli.pipeline.mixes import parse_wanted
from minitron_cli.report import html
from minitron_cli.report.figure import NARROW_SHAPE, WIDE_SHAPE, pareto, size_figure
from minitron_cli.report.heatmap import importance_by_layer
from minitron_cli.report.points import Shown, shown_points
from minitron_cli.report.tables import main_table, task_cells, task_title
from minitron_cli.views.perplexity import DOMINATED, measured_document, notes_of
from minitron_core.atomic_files import write_whole
from minitron_quant.imatrix.files import read_imatrix
from minitron_quant.imatrix.statistics import weight_statistics
from minitron_quant.perplexity.measures import Row
from minitron_quant.quantize.prepare import model_name
from minitron_quant.quantize.run import LevelResult

_PICTURE = "report.svg"


@dataclass(frozen=True)
class Findings:
    """What a job made: the full model's file, the matrix, the table, the levels' files.

    tasks, speed: what trials.try_tasks and try_speed found.
    """

    job: Job
    full: Path
    imatrix: Path | None
    rows: Sequence[Row]
    results: Sequence[LevelResult]
    tasks: Sequence[dict[str, Any]] = ()
    speed: Sequence[dict[str, Any]] = ()


def write_reports(findings: Findings, folder: Path) -> None:
    """Write report.md, .html, .csv and .json, as the job asks; report.svg goes with the text."""
    document = _document(findings)
    shown = shown_points(findings.rows, findings.full.name)
    texts = {
        "md": lambda: _markdown(document, findings, shown),
        "html": lambda: _page(document, findings, shown),
        "csv": lambda: csv_table(*main_table(findings.rows, findings.speed)),
        "json": lambda: json.dumps(document, indent=1, ensure_ascii=False) + "\n",
    }
    for kind in findings.job.output.report:
        write_whole(folder / f"report.{kind}", texts[kind]())
    if shown is not None and "md" in findings.job.output.report:
        write_whole(folder / _PICTURE, size_figure(shown.points, shown.axis, alone=True).svg)


def _document(findings: Findings) -> dict[str, Any]:
    job, text = findings.job, findings.job.measure.text
    return {
        "model": model_name(findings.full),
        "reference": findings.full.name,
        "imatrix": findings.imatrix.name if findings.imatrix else None,
        "calibration": [path.name for path in job.calibration.text],
        **measured_document(Path(text.name) if text else Path(), job.measure.ctx, findings.rows),
        "tasks": list(findings.tasks),
        "speed": list(findings.speed),
        "commands": commands(findings),
        "sha256": {result.path.name: result.sha256 for result in findings.results},
        "versions": versions(),
    }


def commands(findings: Findings) -> list[str]:
    """The commands that do the same one after the other, beside the files that they name."""
    job, full = findings.job, findings.full.name
    source = Path(job.model.source).name if Path(job.model.source).exists() else job.model.source
    lines = [["convert", source, "-o", full, "--outtype", job.model.outtype]]
    imatrix: list[str] = []
    if findings.imatrix is not None:
        texts = [word for text in job.calibration.text for word in ("-f", text.name)]
        limit = ["--chunks", str(job.calibration.chunks)] if job.calibration.chunks else []
        ctx = ["--ctx", str(job.calibration.ctx)]
        lines.append(["imatrix", full, *texts, "-o", findings.imatrix.name, *ctx, *limit])
        imatrix = ["--imatrix", findings.imatrix.name]
    allowed = ["--allow-requantize"] if job.model.requantizes else []
    lines.append(["quantize", full, *job.quantize.levels, *imatrix, *allowed])
    if job.quantize.sizes:
        text = ["-f", job.calibration.text[0].name]
        lines.append(["sensitivity", full, *text, *imatrix])
        wanted = [parse_wanted(size).option for size in job.quantize.sizes]
        lines += [
            ["quantize", full, *option, *imatrix, *allowed, "--no-verify"] for option in wanted
        ]
    if job.measure.text is not None:
        files = [full, *(result.path.name for result in findings.results)]
        limit = ["--chunks", str(job.measure.chunks)] if job.measure.chunks else []
        reference = ["--reference", full] if job.measure.divergence else []
        text = ["-f", job.measure.text.name, "--ctx", str(job.measure.ctx)]
        lines.append(["ppl", *files, *text, *limit, *reference])
    return [shlex.join(["minitron", *line]) for line in lines]


def _explanation(document: dict[str, Any]) -> str:
    calibration = ", ".join(document["calibration"]) or "none"
    return (
        f"Sizes in MiB. Perplexity of {document['text']}: {document['chunks']} chunks of "
        f"{document['ctx']} tokens, the second half of each scored, as llama-perplexity does. "
        f"Accuracy is 100 × PPL of {document['reference']} / PPL. "
        f"Importance matrix from: {calibration}."
    )


def _made_with(document: dict[str, Any]) -> str:
    return " · ".join(f"{name} {number}" for name, number in document["versions"].items())


def _advice(document: dict[str, Any], findings: Findings) -> str:
    """Markdown: which file to choose; empty where no level was measured."""
    files = [
        File(row.model, row.level, round(row.size_mib * 2**20), row.document())
        for row in findings.rows
    ]
    others = any(file.name != findings.full.name for file in files)
    return advice_lines(files, document) if others else ""


def _markdown(document: dict[str, Any], findings: Findings, shown: Shown | None) -> str:
    rows, tasks = findings.rows, findings.tasks
    scores = "".join(f"## {task_title(t)}\n\n{markdown_table(*task_cells(t))}\n" for t in tasks)
    hashes = "".join(f"{digest}  {name}\n" for name, digest in document["sha256"].items())
    notes = "".join(f"{note}\n\n" for note in notes_of(rows))
    picture = f"![{shown.axis.title} against size]({_PICTURE})\n\n" if shown else ""
    advice = _advice(document, findings)
    return (
        f"# {document['model']}\n\n"
        f"{markdown_table(*main_table(rows, findings.speed, marked=True))}\n"
        f"{notes}{picture}"
        f"{f'## Which file?{chr(10) * 2}{advice}{chr(10) * 2}' if advice else ''}"
        f"{_explanation(document)}\n\n"
        f"{scores}## How it was made\n\n```\n{chr(10).join(document['commands'])}\n```\n\n"
        f"Made with {_made_with(document)}.\n\n"
        f"## SHA-256\n\n```\n{hashes}```\n"
    )


def _page(document: dict[str, Any], findings: Findings, shown: Shown | None) -> str:
    rows, advice = findings.rows, _advice(document, findings)
    statistics = weight_statistics(read_imatrix(findings.imatrix)) if findings.imatrix else []
    headers, cells = main_table(rows, findings.speed, marked=True)
    parts = [
        html.heading("Which file?") + html.advice(advice) if advice else "",
        html.heading("Quality against size"),
        _figure(shown),
        html.table(headers, cells, best=_front(rows, shown), sortable=True),
        *map(html.paragraph, notes_of(rows)),
        html.paragraph(_explanation(document)),
        html.picture(
            [importance_by_layer(statistics)],
            "The importance matrix: mean square of every weight's inputs, by layer.",
        ),
        *(
            part
            for task in findings.tasks
            for part in (html.heading(task_title(task)), html.table(*task_cells(task)))
        ),
        html.heading("How it was made"),
        html.listing(document["commands"]),
        html.paragraph(f"Made with {_made_with(document)}."),
        html.heading("SHA-256"),
        html.facts(document["sha256"]),
    ]
    lead = (
        f"{len(rows)} files measured on {document['text']}, compared with {document['reference']}"
    )
    return html.page(document["model"], lead, parts)


def _figure(shown: Shown | None) -> str:
    if shown is None:
        return ""
    wide, narrow = (size_figure(shown.points, shown.axis, s) for s in (WIDE_SHAPE, NARROW_SHAPE))
    beaten = any(point.beaten for point in shown.points)
    caption = [
        shown.caption,
        "In colour, and joined by a line: files that no other beats in both.",
        f"Hollow: files marked {DOMINATED} in the table." if beaten else "",
    ]
    pictures = [html.named_below(wide.svg, "wide", wide.unnamed)]
    pictures.append(html.named_below(narrow.svg, "narrow", narrow.unnamed))
    return html.picture(pictures, " ".join(filter(None, caption)))


def _front(rows: Sequence[Row], shown: Shown | None) -> frozenset[int]:
    """The rows of the files on the figure's line."""
    if shown is None:
        return frozenset()
    points = shown.points
    names = {points[n].name for n in pareto([(point.size, point.value) for point in points])}
    return frozenset(n for n, row in enumerate(rows) if (row.level or row.model) in names)
