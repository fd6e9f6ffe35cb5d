"""The head of a model card: license, languages, and what was quantized from what."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_core.gguf import Gguf

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

HUB = "https://huggingface.co/"
_HEAD_KEYS = ("license", "license_name", "license_link", "language", "tags")


@dataclass(frozen=True)
class CardSettings:
    """What the folder itself does not say.

    source_card: the README of the model quantized. repository: owner/name where it will be.
    """

    folder: Path
    base_model: str | None = None
    author: str | None = None
    source_card: Path | None = None
    repository: str | None = None
    force: bool = False


def base_model(settings: CardSettings, first: Gguf) -> str | None:
    """owner/name of the model that was quantized: given, or as the file says it."""
    if settings.base_model:
        return settings.base_model
    keys = ("general.source.repo_url", "general.repo_url", "general.base_model.0.repo_url")
    for key in keys:
        url = first.get(key)
        if isinstance(url, str) and url.startswith(HUB):
            return url.removeprefix(HUB).strip("/")
    return None


def make_head(
    settings: CardSettings, first: Gguf, source: dict[str, Any], written: dict[str, Any]
) -> ModelCardData:
    """The head that the Hub reads: of the options, the file, the source's card, the old card."""
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
    made = {
        "base_model": base,
        "library_name": "gguf",
        "pipeline_tag": source.get("pipeline_tag") or "text-generation",
        "tags": tags,
        "base_model_relation": "quantized" if base else None,
        "quantized_by": settings.author or first.get("general.quantized_by"),
        **head,
    }
    made = {key: value for key, value in made.items() if value}
    decided = {key for key in source if source[key]}
    decided |= {"base_model", "base_model_relation"} if settings.base_model else set()
    decided |= {"quantized_by"} if settings.author else set()
    return ModelCardData(**_merged(made, written, decided))


def _merged(
    made: dict[str, Any], written: dict[str, Any], decided: Collection[str]
) -> dict[str, Any]:
    """The head of a card: what the old one says is kept, but for the keys decided now.

    Tags of both are kept.
    """
    merged = made | {key: value for key, value in written.items() if key not in decided}
    tags = written.get("tags")
    both = (*made.get("tags", ()), *(tags if isinstance(tags, list) else ()))
    return merged | {"tags": [*dict.fromkeys(both)]}
