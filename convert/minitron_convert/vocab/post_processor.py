"""What a tokenizer puts around a text, by the post-processor of tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Classes of transformers that put the begin and end tokens themselves, whatever the file says.
_OWN_TEMPLATE = {
    "LlamaTokenizer": (True, False),
    "LlamaTokenizerFast": (True, False),
    "CodeLlamaTokenizer": (True, False),
    "CohereTokenizer": (True, False),
    "CohereTokenizerFast": (True, False),
}


def processors(node: Any) -> Iterator[dict[str, Any]]:
    """The post-processors of a node, one by one."""
    if isinstance(node, dict):
        parts = node.get("processors", [node])
        if isinstance(parts, list):
            yield from (part for part in parts if isinstance(part, dict))


def special_tokens_around(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[list[int], list[int]]:
    """The ids before and behind a text, as transformers 4.57.6 encodes it.

    KeyError, TypeError or AttributeError where the tokenizer is malformed.
    """
    own = _OWN_TEMPLATE.get(str(settings.get("tokenizer_class")))
    if own is not None:
        ids = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}
        around = []
        for kind, default in zip(("bos", "eos"), own, strict=True):
            token = settings.get(f"{kind}_token")
            text = token.get("content") if isinstance(token, dict) else token
            wanted = settings.get(f"add_{kind}_token", default)
            around.append([ids[text]] if wanted and text in ids else [])
        return around[0], around[1]
    before: list[int] = []
    after: list[int] = []
    for processor in processors(tokenizer.get("post_processor")):
        if processor.get("type") == "TemplateProcessing":
            place = before
            for part in processor["single"]:
                if "SpecialToken" in part:
                    place += processor["special_tokens"][part["SpecialToken"]["id"]]["ids"]
                else:
                    place = after
    return before, after
