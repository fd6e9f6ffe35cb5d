"""Special tokens, whether they are added around a text, and chat templates."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitron_convert.checkpoint.json_files import read_optional, read_settings, read_text
from minitron_convert.vocab.post_processor import processors
from minitron_convert.vocab.rules import VocabularyRules
from minitron_convert.vocab.tokens import TokenType, Vocabulary, added_tokens
from minitron_core.errors import Damaged
from minitron_core.gguf import KeyValue, ValueType
from minitron_core.quoting import quoted

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
KEY_OF_KIND = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # llama.cpp's own spelling
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
    "eot": "eot",
    "eom": "eom",
    "prefix": "fim_pre",
    "suffix": "fim_suf",
    "middle": "fim_mid",
}

# CodeLlama's tokens for filling in code, which its configs do not name.
INFILL = {"▁<PRE>": "prefix", "▁<SUF>": "suffix", "▁<MID>": "middle", "▁<EOT>": "eot"}

# Tokens that llama.cpp takes as the end of a generation by their text (llama-vocab.cpp).
KNOWN_ENDS = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
}


@dataclass
class SpecialTokens:
    """Ids by kind, in the order found and at the end; `add` says which are put around a text."""

    ids: dict[str, int] = field(default_factory=dict)
    last_ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    template: str | None = None
    named_templates: dict[str, str] = field(default_factory=dict)

    def keys(self) -> list[KeyValue]:
        """The tokenizer.* keys."""
        keys = [self._id_key(kind, i) for kind, i in self.ids.items()]
        keys += [
            KeyValue.of(f"tokenizer.ggml.add_{kind}_token", ValueType.BOOL, value)
            for kind, value in self.add.items()
            if kind in ("bos", "eos", "sep")
        ]
        if self.named_templates:
            names = list(self.named_templates)
            keys.append(KeyValue.of("tokenizer.chat_templates", ValueType.ARRAY, names))
            for name, text in self.named_templates.items():
                key = f"tokenizer.chat_template.{name}"
                keys.append(KeyValue.of(key, ValueType.STRING, text))
        if self.template:
            keys.append(KeyValue.of("tokenizer.chat_template", ValueType.STRING, self.template))
        return keys + [self._id_key(kind, i) for kind, i in self.last_ids.items()]

    @staticmethod
    def _id_key(kind: str, i: int) -> KeyValue:
        return KeyValue.of(f"tokenizer.ggml.{KEY_OF_KIND[kind]}_token_id", ValueType.UINT32, i)


def read_special(
    folder: Path,
    config: dict[str, Any],
    settings: dict[str, Any],
    tokenizer: dict[str, Any],
    vocabulary: Vocabulary,
    rules: VocabularyRules,
) -> SpecialTokens:
    """What tokenizer.json, tokenizer_config.json (`settings`) and config.json say, in this order.

    Where only tokenizer_config.json names the tokens around a text, they are looked up in the
    vocabulary by their text.
    """
    special = SpecialTokens()
    size = len(vocabulary.tokens)
    names = {kind: _content(settings.get(f"{kind}_token")) for kind in KINDS}
    _read_post_processor(tokenizer.get("post_processor"), names, special)
    added = added_tokens(tokenizer.get("added_tokens"))
    ids = {text: i for i, (text, _) in sorted(added.items(), reverse=True)}
    for kind, name in names.items():
        flag = settings.get(f"add_{kind}_token")
        if isinstance(flag, bool):
            special.add.setdefault(kind, flag)
        if ids.get(name or "", size) < size:
            special.ids[kind] = ids[name or ""]
    for kind in names:
        i = config.get(f"{kind}_token_id")
        if type(i) is int and 0 <= i < size:
            special.ids.setdefault(kind, i)
    control = {
        text.decode("utf-8", "replace"): i
        for i, text in enumerate(vocabulary.tokens)
        if vocabulary.types[i] in (TokenType.CONTROL, TokenType.UNKNOWN)
    }
    for kind in ("bos", "eos"):
        if names[kind] in control:
            special.ids.setdefault(kind, control[names[kind] or ""])
    _force_ids(vocabulary, config, rules, special)
    _read_infill(vocabulary, special)
    _read_ends(read_settings(folder / "generation_config.json", []), config, vocabulary, special)
    _read_templates(folder, settings, special)
    return special


def _force_ids(
    vocabulary: Vocabulary, config: dict[str, Any], rules: VocabularyRules, special: SpecialTokens
) -> None:
    """What the family itself says of special tokens. Damaged: a text that is not a token."""
    for kind, token in rules.forced_ids.items():
        if token.encode() not in vocabulary.tokens:
            raise Damaged(
                f"the tokenizer has no token {token}, which this architecture needs",
                "the tokenizer belongs to another model",
            )
        special.ids.setdefault(kind, vocabulary.tokens.index(token.encode()))
    for kind, i in rules.last_ids.items():
        (special.ids if kind in special.ids else special.last_ids)[kind] = i
    end = config.get(rules.eos_key)
    if type(end) is int and 0 <= end < len(vocabulary.tokens):
        special.ids["eos"] = end
    if rules.without_bos == len(vocabulary.tokens):
        special.add["bos"] = False


def _read_infill(vocabulary: Vocabulary, special: SpecialTokens) -> None:
    """CodeLlama's tokens around a gap in code, if all of them are there."""
    ends = {i: token for i, token in enumerate(vocabulary.tokens) if token.endswith(b">")}
    # a token that is looked for in the text as it is has a space in place of ▁
    texts = {i: token.decode("utf-8", "replace").replace(" ", "▁") for i, token in ends.items()}
    ids = {INFILL[text]: i for i, text in texts.items() if text in INFILL}
    if len(ids) == len(INFILL):
        special.ids.update(ids)


def _read_ends(
    generation: dict[str, Any],
    config: dict[str, Any],
    vocabulary: Vocabulary,
    special: SpecialTokens,
) -> None:
    """Further tokens that end a generation; keys can name two besides the end token.

    Those that llama.cpp knows by their text need none.
    """
    given = [generation.get("eos_token_id"), config.get("eos_token_id")]
    ends = [i for value in given for i in (value if isinstance(value, list) else [value])]
    size = len(vocabulary.tokens)
    for i in dict.fromkeys(i for i in ends if type(i) is int and 0 <= i < size):
        if "eos" not in special.ids:
            special.ids["eos"] = i
        text = vocabulary.tokens[i].decode("utf-8", "replace")
        if i in special.ids.values() or text in KNOWN_ENDS:
            continue
        kind = next((kind for kind in ("eot", "eom") if kind not in special.ids), None)
        if kind is None:
            vocabulary.notes.append(
                f"{quoted(text)} ends a generation too: GGUF has no key left for it"
            )
        else:
            special.ids[kind] = i


def _content(entry: Any) -> str | None:
    value = entry.get("content") if isinstance(entry, dict) else entry
    return value if isinstance(value, str) else None


def _read_post_processor(node: Any, names: dict[str, str | None], special: SpecialTokens) -> None:
    """What is put around a text. Knows templates of one token before and one behind."""
    names["bos"] = names["bos"] or names["cls"]
    names["eos"] = names["eos"] or names["sep"]
    for processor in processors(node):
        kind = processor.get("type")
        if kind == "ByteLevel":
            special.add.setdefault("bos", False)
            special.add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            special.add.update(bos=True, eos=True, sep=True)
        elif kind == "TemplateProcessing":
            _read_template_processing(processor, names, special)


def _read_template_processing(
    processor: dict[str, Any], names: dict[str, str | None], special: SpecialTokens
) -> None:
    single = _template(processor.get("single"))
    if len(single) < 2:
        return
    first, last = single[0], single[-1]
    if first:
        names["bos"] = names["bos"] or first
        special.add["bos"] = first in (names["bos"], names["cls"])
    if last:
        if names["eos"] not in (None, last):
            # The text ends with something else than the end token: that one ends a turn.
            names["eot"] = names["eos"]
        names["eos"] = last
        special.add["eos"] = True
    pair = _template(processor.get("pair"))
    begin = 1 if first and pair[:1] == [first] else 0
    end = len(pair) - 1 if last and pair[-1:] == [last] else len(pair)
    middle = pair[begin:end][1:-1]
    if middle:
        ends = (names["sep"], names["eos"])
        special.add["sep"] = (middle[0] in ends and not last) or (
            len(middle) == 2 and middle[1] in ends
        )


def _template(parts: Any) -> list[str | None]:
    """A template as its special tokens' texts, None where the text itself stands."""
    if not isinstance(parts, list):
        return []
    tokens = [part.get("SpecialToken") if isinstance(part, dict) else None for part in parts]
    names = [token.get("id") if isinstance(token, dict) else None for token in tokens]
    return [name if isinstance(name, str) else None for name in names]


def _read_templates(folder: Path, settings: dict[str, Any], special: SpecialTokens) -> None:
    """The chat template: in tokenizer_config.json, else in a file of its own."""
    value = settings.get("chat_template")
    if value is None and (folder / "chat_template.jinja").is_file():
        value = read_text(folder / "chat_template.jinja")
        more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        special.named_templates = {path.stem: read_text(path) for path in more}
    elif value is None:
        value = read_optional(folder / "chat_template.json").get("chat_template")
    if isinstance(value, list):
        named = {entry["name"]: entry["template"] for entry in value if _is_named(entry)}
        value = named.pop("default", None)
        special.named_templates = named
    if value is not None and not isinstance(value, str):
        raise Damaged(f"the chat template in {folder} is not text")
    special.template = value


def _is_named(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("template"), str)
    )
