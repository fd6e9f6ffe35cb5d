"""Which of llama.cpp's pre-tokenizers a tokenizer.json asks for, by what it does to text.

This decides where the fingerprint of its ids is not one that llama.cpp knows: for fine-tunes with
other merges, and for small models.

The regular expressions are those of the published tokenizers; llama.cpp implements them under the
names given here (llama-vocab.cpp, 0c1e57098).
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from minitron_convert.vocab.fingerprint import pretokenizer_name
from minitron_core.errors import Unsupported

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_PATH_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

# (steps, ignore_merges) → llama.cpp's name. A step is a regular expression, or one of these words.
GPT2, DIGITS = "bytes with GPT-2's expression", "single digits"
KNOWN: dict[tuple[tuple[str, ...], bool], str] = {
    ((f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}{{1,3}}|{_SIGNS}|{_REST}",), True): "llama-bpe",
    ((f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}{{1,3}}|{_SIGNS}|{_REST}",), False): "dbrx",
    ((f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}|{_SIGNS}|{_REST}",), False): "qwen2",
    ((f"{_CASED % ('', '')}|\\p{{N}}|{_PATH_SIGNS}|{_REST}",), True): "tekken",
    (
        (
            f"{_CASED % (_CONTRACTIONS + '?', _CONTRACTIONS + '?')}"
            f"|\\p{{N}}{{1,3}}|{_PATH_SIGNS}|{_REST}",
        ),
        False,
    ): "gpt-4o",
    (
        (
            f"{_CASED % (_CONTRACTIONS + '?', _CONTRACTIONS + '?')}"
            f"|\\p{{N}}{{1,3}}|{_PATH_SIGNS}|{_REST}",
        ),
        True,
    ): "gpt-4o",
    ((GPT2,), False): "gpt-2",
    ((DIGITS, GPT2), False): "smollm",
}

# Names whose pre-tokenizer does what others do too, by the names of these.
SHARED = {"smollm": "starcoder, refact and command-r", "tekken": "pixtral"}
# What a tokenizer does and what llama.cpp takes it for, where these split some texts differently.
_TAKEN_FOR_ANOTHER = {("gpt-2", "smollm"), ("tekken", "pixtral")}


def choose_pretokenizer(
    tokenizer: dict[str, Any], settings: dict[str, Any], merges: Sequence[str], path: Path
) -> tuple[str, list[str]]:
    """The name of the pre-tokenizer, as llama.cpp's converter chooses it, and what to say of it.

    `settings` is tokenizer_config.json. Unsupported for unknown ones.
    """
    known = pretokenizer_name(tokenizer, settings, merges)
    if known is None:
        name = recognize(tokenizer, path)
        shared = f"{path.name} splits text as {name} does, and so do {SHARED.get(name)}"
        return name, [f"{shared}: taken for {name}"] if name in SHARED else []
    steps = (_steps_of(tokenizer), bool(tokenizer["model"].get("ignore_merges", False)))
    if (KNOWN.get(steps), known) not in _TAKEN_FOR_ANOTHER:
        return known, []
    told = f"llama.cpp takes {path.name} for {known}, which splits some texts differently than it"
    return known, [told]


def recognize(tokenizer: dict[str, Any], path: Path) -> str:
    """The name of the pre-tokenizer. Unsupported for unknown ones."""
    ignore_merges = bool(tokenizer["model"].get("ignore_merges", False))
    steps = _steps_of(tokenizer)
    name = KNOWN.get((steps, ignore_merges))
    if name is not None:
        return name
    told = " then ".join(steps) or "nothing"
    nearest = max(KNOWN, key=lambda known: _likeness(known, steps, ignore_merges))
    raise Unsupported(
        f"{path} splits text in a way that is not known: {told} "
        f"(merges {'ignored' if ignore_merges else 'followed'} for whole words)",
        f"the nearest known is {KNOWN[nearest]}, which splits by {' then '.join(nearest[0])}",
    )


def _likeness(known: tuple[tuple[str, ...], bool], steps: tuple[str, ...], flag: bool) -> float:
    matcher = SequenceMatcher(None, " ".join(known[0]), " ".join(steps), autojunk=False)
    return matcher.ratio() + (0.001 if known[1] == flag else 0)


def _steps_of(tokenizer: dict[str, Any]) -> tuple[str, ...]:
    return tuple(_steps(tokenizer.get("pre_tokenizer")))


def _steps(node: Any) -> list[str]:
    """What a pre-tokenizer does, step by step; unknown parts appear by their own name."""
    if not isinstance(node, dict):
        return []
    kind = node.get("type")
    if kind == "Sequence":
        parts = node.get("pretokenizers")
        return [step for part in parts for step in _steps(part)] if isinstance(parts, list) else []
    if kind == "ByteLevel":
        steps = [GPT2] if node.get("use_regex", True) else []
        return [*steps, "a space before the text"] if node.get("add_prefix_space") else steps
    if kind == "Digits" and node.get("individual_digits"):
        return [DIGITS]
    if kind == "Split" and isinstance(node.get("pattern"), dict):
        pattern = node["pattern"].get("Regex")
        isolated = node.get("behavior") == "Isolated"
        removed = node.get("behavior") == "Removed" and node.get("invert") is True
        if isinstance(pattern, str) and (removed or (isolated and not node.get("invert"))):
            return [pattern]
    return [kind if isinstance(kind, str) else "a step without a name"]
