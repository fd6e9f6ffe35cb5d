"""The keys of a job file: what each takes and means. The checks and docs/job-files.md read them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minitron_convert.outtypes import OUTTYPES
from minitron_core.errors import Usage
from minitron_core.quoting import quoted
from minitron_quant.tasks.registry import task_names

REPORTS = ("md", "html", "csv", "json")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class Form:
    """What values a key takes, in words and as a check."""

    words: str
    valid: Callable[[Any], bool]


TEXT = Form("a text", _is_text)
TEXTS = Form("a list of texts", _is_texts)
LEVELS = Form("a list of levels", _is_texts)
SIZES = Form("a list of sizes", _is_texts)
COUNT = Form("a number from 1 on", _is_count)
FLAG = Form("true or false", lambda value: isinstance(value, bool))
SOURCES = Form("a text or a list of texts", lambda value: _is_text(value) or _is_texts(value))
OUTTYPE = Form(f"one of {', '.join(OUTTYPES)}", lambda value: value in OUTTYPES)
FORMATS = Form(
    f"a list of {', '.join(REPORTS)}", lambda value: _is_texts(value) and set(value) <= {*REPORTS}
)


@dataclass(frozen=True)
class JobKey:
    """One key of a section: its form, what it means, and what stands for it when left out."""

    section: str
    name: str
    form: Form
    default: str
    meaning: str


_KEYS = (
    JobKey(
        "model",
        "source",
        SOURCES,
        "required",
        "the checkpoint: a folder, or owner/name on the Hub; several make a job each",
    ),
    JobKey("model", "outtype", OUTTYPE, "auto", "the type of the full-precision file"),
    JobKey("calibration", "text", TEXTS, "no matrix", "files to collect the importance matrix on"),
    JobKey("calibration", "chunks", COUNT, "all", "at most this many chunks of them"),
    JobKey("calibration", "ctx", COUNT, "512", "tokens of a chunk"),
    JobKey("quantize", "levels", LEVELS, '["all"]', "the levels to make"),
    JobKey(
        "quantize",
        "sizes",
        SIZES,
        "none",
        'mixed precision for sizes: "1.5G", "3.5bpw", "like:Q3_K_M", "kld:0.02"',
    ),
    JobKey("measure", "text", TEXT, "no table", "the file to measure perplexity on"),
    JobKey("measure", "ctx", COUNT, "512", "tokens of a chunk"),
    JobKey("measure", "chunks", COUNT, "all", "at most this many chunks of it"),
    JobKey("measure", "divergence", FLAG, "true", "also the divergence from the full model"),
    JobKey("tasks", "limit", COUNT, "all", "at most this many questions of each"),
    JobKey("speed", "prompt", COUNT, "512", "tokens of the prompt to time"),
    JobKey("speed", "generate", COUNT, "128", "tokens to generate and time"),
    JobKey("speed", "repetitions", COUNT, "3", "how often; without the section nothing is timed"),
    JobKey("output", "directory", TEXT, "out", "the folder of everything that is made"),
    JobKey("output", "report", FORMATS, '["md", "json"]', "the forms of the report"),
)


def job_keys() -> list[JobKey]:
    """All keys, in the order of a job file; those of the tasks come from their registry."""
    tasks = [
        JobKey("tasks", task, TEXT, "not asked", f"a file of questions for {task}")
        for task in task_names()
    ]
    first = next(i for i, key in enumerate(_KEYS) if key.section == "tasks")
    return [*_KEYS[:first], *tasks, *_KEYS[first:]]


def keys_of(section: str) -> dict[str, JobKey]:
    """The keys of a section by name."""
    return {key.name: key for key in job_keys() if key.section == section}


def check_value(key: JobKey, value: Any, where: str) -> None:
    """Usage where a key does not take the value."""
    if not key.form.valid(value):
        raise Usage(
            f"{where}: {key.name} in [{key.section}] must be {key.form.words}, not {quoted(value)}"
        )


def keys_table() -> str:
    """Markdown: every key, as docs/job-files.md has it."""
    rows = [
        f"| `[{key.section}]` `{key.name}` | {key.form.words} | {key.default} | {key.meaning} |"
        for key in job_keys()
    ]
    return "\n".join(["| key | value | when left out | |", "|---|---|---|---|", *rows])
