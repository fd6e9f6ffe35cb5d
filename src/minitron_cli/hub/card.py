"""A model card for the Hub: what is in a folder, what was measured, and which file to choose."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.hub.card_head import HUB, CardSettings, make_head
from minitron_cli.hub.card_sections import carried_sections, kept_sections
from minitron_cli.hub.card_usage import usage
from minitron_cli.hub.recommend import advice_lines, usual_file
from minitron_cli.output import markdown_table
from minitron_cli.units import show_size
from minitron_cli.views.perplexity import table_cells
from minitron_core.atomic_files import write_whole
from minitron_core.errors import Damaged, MinitronError, NotFound
from minitron_core.gguf import Gguf
from minitron_core.hashing import file_sha256
from minitron_core.progress import Event, Progress, ignore
from minitron_core.text_encoding import as_utf8
from minitron_quant.levels import level_of_ftype
from minitron_quant.model_files import (
    models_in,
    open_model_files,
    other_content,
    published_in,
)
from minitron_quant.perplexity.measures import columns
from minitron_quant.quantize.fallbacks import fallbacks_in

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

NAME = "README.md"
PICTURE = "report.svg"
_MARK = (
    "<!-- minitron card: made from the files of this folder. Made again, its own sections are "
    "replaced; others, and keys of the head, are kept -->"
)

# what is shown with its error, by its heading
_WITH_ERROR = {"PPL": "ppl_error", "KLD": "kld_error", "Same top (%)": "same_top_error"}
# the size has a column of its own, and errors stand behind what they are of
_NOT_IN_CARD = ("size_mib", "size_pct", "ppl_error", "kld_error", "kld_p99")


@dataclass(frozen=True)
class Card:
    """A card as it is written, and what it lacks."""

    path: Path
    text: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """One file of the folder, with what was measured of it, if anything was.

    gptq: how GPTQ chose its codes; empty where it did not.
    """

    name: str
    level: str
    bytes: int
    row: dict[str, Any] | None
    fallbacks: dict[str, int] = field(default_factory=dict)
    gptq: str = ""


def write_card(settings: CardSettings, progress: Progress = ignore) -> Card:
    """Write README.md into the folder; one that somebody wrote is replaced only with force.

    Sections that are not the card's own, and keys of its head, are kept. The files are hashed.
    """
    path = settings.folder / NAME
    models_in(settings.folder)
    there = path.exists()
    if there and not settings.force and _MARK[:20] not in path.read_text(errors="replace"):
        raise MinitronError(f"{path} was not made by minitron card", "--force replaces it")
    card = make_card(settings, _parse(path) if there else None, progress)
    write_whole(path, card.text)
    return card


def make_card(
    settings: CardSettings, old: "_Parsed | None" = None, progress: Progress = ignore
) -> Card:
    """The card of a folder; `old` is the one that it replaces.

    NotFound: no models in the folder; Damaged: no table in its report.
    """
    paths = models_in(settings.folder)
    report = _report(settings.folder)
    measured = {row["model"]: row for row in report.get("rows", ())}
    files = [_file(path, measured) for path in paths]
    files.sort(key=lambda file: file.bytes)
    first = open_model_files(paths[0])[0]
    source = _source_card(settings.source_card)
    head = make_head(settings, first, source.data if source else {}, old.data if old else {})
    chosen = usual_file(files)
    parts = [
        f"---\n{head.to_yaml()}\n---",
        _MARK,
        f"# {_name(first, paths[0])} GGUF",
        _introduction(head.base_model),
        f"## Files\n\n{_files(files)}",
        _picture(settings.folder),
        f"## Which file should I choose?\n\n{advice_lines(files, report)}",
        usage(first, settings.repository, chosen.name, chosen.level),
        _how(settings.folder, report, files),
        _hashes(settings.folder, progress),
        carried_sections(source.content) if source else "",
    ]
    parts.append(kept_sections(old.content, "\n\n".join(parts)) if old else "")
    text = "\n\n".join(part for part in parts if part) + "\n"
    return Card(settings.folder / NAME, text, _warnings(settings, head))


def names(path: Path, repository: str) -> bool:
    """Whether a card names the repository; True for one that was not made here."""
    text = path.read_text(errors="replace")
    return repository in text or _MARK[:20] not in text


def _warnings(settings: CardSettings, head: "ModelCardData") -> tuple[str, ...]:
    found = []
    if not head.license:
        found.append(
            "the card names no license, and nobody may use the files without one: "
            "--source-card takes it from the original's card, or write it into the head"
        )
    if not head.base_model:
        found.append("the card names no original model: --base-model OWNER/NAME does")
    if settings.repository is None:
        found.append("--repo OWNER/NAME adds the lines for llama.cpp and Ollama")
    return tuple(found)


def _report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    if not path.exists():
        return {}
    try:
        report = json.loads(path.read_text())
        for row in report["rows"]:
            row["model"] = str(row["model"])
            row["ppl"] = _number(row["ppl"])
            for key in (column.key for column in columns()):
                row[key] = None if row.get(key) is None else _number(row[key])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Damaged(
            f"{path} is not a report of minitron run", "minitron run writes one"
        ) from error
    found: dict[str, Any] = report
    return found


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError  # float(False) is 0
    return float(value)


def _file(path: Path, measured: dict[str, dict[str, Any]]) -> File:
    shards = open_model_files(path)
    level = level_of_ftype(shards[0].get("general.file_type"))
    size = sum(shard.size for shard in shards)
    row, gptq = measured.get(path.name), _gptq(shards[0])
    return File(path.name, level, size, row, fallbacks_in(shards), gptq)


def _gptq(first: Gguf) -> str:
    """How GPTQ chose the codes of a file, from its metadata."""
    method, texts, tokens = (
        first.get(f"minitron.gptq.{key}") for key in ("method", "texts", "tokens")
    )
    if not (isinstance(method, str) and isinstance(texts, list) and isinstance(tokens, int)):
        return ""
    return f"{method} GPTQ, on {tokens:,} tokens of {', '.join(map(str, texts))}"


def _name(first: Gguf, path: Path) -> str:
    name = first.get("general.name")
    return name if isinstance(name, str) and name else path.stem


def _introduction(base_model: str | list[str] | None) -> str:
    bases = [base_model] if isinstance(base_model, str) else base_model or ()
    of = " and ".join(f"[{base}]({HUB}{base})" for base in bases) or "a model"
    return (
        f"Quantizations of {of} for llama.cpp and everything built on it. Any of the files runs by "
        "itself; they differ in size and in how close they are to the full model."
    )


def _files(files: Sequence[File]) -> str:
    rows = [file.row or {} for file in files]
    headers, measures = table_cells(rows, columns(rows), _NOT_IN_CARD)
    for place, key in ((headers.index(h), k) for h, k in _WITH_ERROR.items() if h in headers):
        for line, row in zip(measures, rows, strict=True):
            line[place] += f" ± {row[key]:.2g}" if line[place] and row.get(key) else ""
    cells = [
        [f"[{file.name}](./{file.name})", file.level, show_size(file.bytes), *line]
        for file, line in zip(files, measures, strict=True)
    ]
    table = markdown_table(["File", "Level", "Size", *headers], cells, left=2).rstrip()
    notes = [_fallback_note(file) for file in files if file.fallbacks]
    return "\n\n".join((table, *notes))


def _fallback_note(file: File) -> str:
    types = ", ".join(f"{count} {name}" for name, count in file.fallbacks.items())
    return (
        f"{sum(file.fallbacks.values())} tensors of {file.name} have other types than {file.level} "
        f"wants ({types}), because their rows are not divisible by the blocks of its types."
    )


def _picture(folder: Path) -> str:
    return f"![Size against KL divergence](./{PICTURE})" if (folder / PICTURE).exists() else ""


def _how(folder: Path, report: dict[str, Any], files: Sequence[File]) -> str:
    parts = ["## How they were made"]
    matrices = [
        path.name for path in sorted(folder.glob("*.gguf")) if "matrix" in other_content(path)
    ]
    calibration = ", ".join(report.get("calibration", ())) or None
    if matrices:
        told = f", calibrated on {calibration}" if calibration else ""
        parts.append(f"With the importance matrix {', '.join(matrices)}{told}.")
    for gptq in dict.fromkeys(file.gptq for file in files if file.gptq):
        chosen = ", ".join(file.name for file in files if file.gptq == gptq)
        parts.append(f"The codes of {chosen} were chosen by {gptq}.")
    if report.get("rows"):
        parts.append(
            f"Measured on {report['text']}: {report['chunks']} chunks of {report['ctx']} tokens, "
            "as llama-perplexity does. Accuracy is the full model's perplexity over the file's; "
            "the KL divergence is that of the file's predictions from the full model's, in nats "
            "per token."
        )
    if report.get("commands"):
        parts.append("```sh\n" + "\n".join(report["commands"]) + "\n```")
    if report.get("versions"):
        made = " · ".join(f"{name} {number}" for name, number in report["versions"].items())
        parts.append(f"Made with {made}.")
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _hashes(folder: Path, progress: Progress) -> str:
    """SHA-256 of every file that is published: models, their shards, matrices, adapters."""
    paths = published_in(folder)
    total, done, lines = sum(path.stat().st_size for path in paths), 0, []
    for path in paths:
        progress(Event("hash", done, total, "bytes", path.name))
        lines.append(f"{file_sha256(path)}  {path.name}")
        done += path.stat().st_size
    listing = "\n".join(lines)
    return f"## SHA-256\n\n<details>\n\n```\n{listing}\n```\n</details>"


@dataclass(frozen=True)
class _Parsed:
    data: dict[str, Any]
    content: str


def _source_card(path: Path | None) -> _Parsed | None:
    if path is None:
        return None
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"{file} does not exist", "give the card of the model that was quantized")
    return _parse(file)


def _parse(file: Path) -> _Parsed:
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(as_utf8(file.read_bytes()).decode(), ignore_metadata_errors=True)
    except (ValueError, OSError) as error:
        raise Damaged(f"{file} is not a model card: {error}") from error
    head: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    return _Parsed(head, card.text)
