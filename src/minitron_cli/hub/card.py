"""A model card for the Hub: what is in a folder, what was measured, and which file to choose."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_cli.hub.recommend import advice_lines
from minitron_cli.output import markdown_table
from minitron_cli.units import show_size
from minitron_cli.views.perplexity import table_cells
from minitron_core.atomic_files import write_whole
from minitron_core.errors import Damaged, MinitronError, NotFound
from minitron_core.gguf import Gguf
from minitron_core.text_encoding import as_utf8
from minitron_quant.levels import level_of_ftype
from minitron_quant.model_files import models_in, open_model_files, other_content
from minitron_quant.perplexity.measures import columns
from minitron_quant.quantize.fallbacks import fallbacks_in

NAME = "README.md"
_HUB = "https://huggingface.co/"
_MARK = "<!-- minitron card: made from the files of this folder; edits are lost -->"
_HEAD_KEYS = ("license", "license_name", "license_link", "language", "tags")
# the size has a column of its own, and errors tell a reader who chooses a file little
_NOT_IN_CARD = ("size_mib", "size_pct", "ppl_error", "kld_error", "kld_p99")
# sections of a source's card that hold for its quantizations as well
_CARRIED = ("limit", "bias", "ethical", "intended use", "out-of-scope", "responsible")


@dataclass(frozen=True)
class CardSettings:
    """What the folder itself does not say. source_card: the README of the model quantized."""

    folder: Path
    base_model: str | None = None
    author: str | None = None
    source_card: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class File:
    """One file of the folder, with what was measured of it, if anything was."""

    name: str
    level: str
    bytes: int
    fallbacks: dict[str, int]
    row: dict[str, Any] | None


def write_card(settings: CardSettings) -> Path:
    """Write README.md into the folder; one that somebody wrote is replaced only with force."""
    path = settings.folder / NAME
    text = make_card(settings)
    if path.exists() and not settings.force and _MARK not in path.read_text(errors="replace"):
        raise MinitronError(f"{path} was not made by minitron card", "--force replaces it")
    write_whole(path, text)
    return path


def make_card(settings: CardSettings) -> str:
    """The card's text. NotFound: no models in the folder; Damaged: no table in its report."""
    paths = models_in(settings.folder)
    report = _report(settings.folder)
    measured = {row["model"]: row for row in report.get("rows", ())}
    files = [_file(path, measured) for path in paths]
    files.sort(key=lambda file: file.bytes)
    first = open_model_files(paths[0])[0]
    source = _source_card(settings.source_card)
    parts = (
        _head(settings, first, source.data if source else {}),
        _MARK,
        f"# {_name(first, paths[0])} GGUF",
        _introduction(settings, first),
        f"## Files\n\n{_files(files)}",
        f"## Which file should I choose?\n\n{advice_lines(files, report)}",
        _how(settings.folder, report),
        _carried(source.content) if source else "",
    )
    return "\n\n".join(part for part in parts if part) + "\n"


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
    return File(path.name, level, size, fallbacks_in(shards), measured.get(path.name))


def _name(first: Gguf, path: Path) -> str:
    name = first.get("general.name")
    return name if isinstance(name, str) and name else path.stem


def base_model(settings: CardSettings, first: Gguf) -> str | None:
    """owner/name of the model that was quantized: given, or as the file says it."""
    if settings.base_model:
        return settings.base_model
    keys = ("general.source.repo_url", "general.repo_url", "general.base_model.0.repo_url")
    for key in keys:
        url = first.get(key)
        if isinstance(url, str) and url.startswith(_HUB):
            return url.removeprefix(_HUB).strip("/")
    return None


def _head(settings: CardSettings, first: Gguf, source: dict[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    told = {
        "license": first.get("general.license"),
        "license_name": first.get("general.license.name"),
        "license_link": first.get("general.license.link"),
        "language": first.get("general.languages"),
        "tags": first.get("general.tags"),
    }
    head = {key: source.get(key) or told[key] for key in _HEAD_KEYS}
    tags = [*dict.fromkeys((*(head.pop("tags") or ()), "gguf", "minitron"))]
    base = base_model(settings, first)
    data = ModelCardData(
        base_model=base,
        library_name="gguf",
        pipeline_tag=source.get("pipeline_tag") or "text-generation",
        tags=tags,
        base_model_relation="quantized" if base else None,
        quantized_by=settings.author or first.get("general.quantized_by"),
        **{key: value for key, value in head.items() if value},
    )
    return f"---\n{data.to_yaml()}\n---"


def _introduction(settings: CardSettings, first: Gguf) -> str:
    base = base_model(settings, first)
    of = f"[{base}]({_HUB}{base})" if base else "a model"
    return (
        f"Quantizations of {of} for llama.cpp and everything built on it. Any of the files runs by "
        "itself; they differ in size and in how close they are to the full model."
    )


def _files(files: Sequence[File]) -> str:
    rows = [file.row or {} for file in files]
    headers, measures = table_cells(rows, columns(rows), _NOT_IN_CARD)
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


def _how(folder: Path, report: dict[str, Any]) -> str:
    parts = ["## How they were made"]
    matrices = [
        path.name for path in sorted(folder.glob("*.gguf")) if "matrix" in other_content(path)
    ]
    calibration = ", ".join(report.get("calibration", ())) or None
    if matrices:
        told = f", calibrated on {calibration}" if calibration else ""
        parts.append(f"With the importance matrix {', '.join(matrices)}{told}.")
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
    if report.get("sha256"):
        lines = "\n".join(f"{digest}  {name}" for name, digest in report["sha256"].items())
        parts.append(f"<details><summary>SHA-256</summary>\n\n```\n{lines}\n```\n</details>")
    return "\n\n".join(parts) if len(parts) > 1 else ""


@dataclass(frozen=True)
class _Source:
    data: dict[str, Any]
    content: str


def _source_card(path: Path | None) -> _Source | None:
    from huggingface_hub import ModelCard

    if path is None:
        return None
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"{file} does not exist", "give the card of the model that was quantized")
    try:
        card = ModelCard(as_utf8(file.read_bytes()).decode(), ignore_metadata_errors=True)
    except (ValueError, OSError) as error:
        raise Damaged(f"{file} is not a model card: {error}") from error
    head: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    return _Source(head, card.text)


def _carried(content: str) -> str:
    """The sections of the source's card about limits and use, as they stand there."""
    lines: list[str] = []
    depth = 0
    fenced = False
    for line in content.splitlines():
        fenced ^= line.lstrip().startswith("```")
        level = 0 if fenced else len(line) - len(line.lstrip("#"))
        if level and level <= (depth or level):
            depth = level if any(word in line.lower() for word in _CARRIED) else 0
        if depth:
            lines.append("##" + line[level:] if level and level <= depth else line)
    text = "\n".join(lines).strip()
    return f"{text}\n\n*The sections above are those of the original model's card.*" if text else ""
