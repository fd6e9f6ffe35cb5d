"""What a family's vocabulary has of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class VocabularyRules:
    """How a family's vocabulary is read and what is added to it (llama.cpp's converter, 0c1e57098).

    `reader` chooses what is read: `auto` takes tokenizer.model before tokenizer.json, `bpe`
    tokenizer.json alone, `pieces` wants tokenizer.model, `phi` is Phi-3's way with either.
    The list of tokens is padded to a multiple of `pad_to`.

    `forced_ids` sets kinds of special tokens (bos, eot …) that nothing else has set, to the id of
    a text; `last_ids` sets others at the end of the file, whatever else says; `eos_key` names a
    key of config.json whose id replaces the end token.
    `space_prefix` says what add_space_prefix, whether a space is put before a text, follows beside
    tokenizer.model: nothing, tokenizer_config.json (`setting`, or `setting last` with the key
    behind all others), or `never last`.
    """

    reader: Literal["auto", "bpe", "pieces", "phi"] = "auto"
    pad_to: int = 1
    forced_ids: Mapping[str, str] = field(default_factory=dict)
    last_ids: Mapping[str, int] = field(default_factory=dict)
    eos_key: str = ""
    space_prefix: Literal["model", "setting", "setting last", "never last"] = "model"
    without_bos: int = 0  # size of the vocabulary whose models begin without a token


PLAIN_RULES = VocabularyRules()
# For models of Llama's class; those with 49,152 tokens are Granite's and SmolLM's.
LLAMA_RULES = VocabularyRules(space_prefix="setting", without_bos=49152)
