"""The model's own libraries as a reference, where they are installed: none of them is required."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minitron_convert.checkpoint.tensor_ref import Array


def source_encoder(folder: Path) -> Callable[[str], list[int]] | None:
    """Token ids by sentencepiece or tokenizers, without added tokens; None if not installed."""
    if (folder / "tokenizer.model").is_file():
        library = _import("sentencepiece")
        if library is None:
            return None
        pieces = library.SentencePieceProcessor(str(folder / "tokenizer.model"))
        return lambda text: [int(i) for i in pieces.encode(text)]
    library = _import("tokenizers")
    if library is None or not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return lambda text: [int(i) for i in tokenizer.encode(text, add_special_tokens=False).ids]


def source_logits(folder: Path) -> Callable[[list[int]], Array] | None:
    """Logits [tokens, vocabulary] by transformers in float32; None if it is not installed."""
    torch, transformers = _import("torch"), _import("transformers")
    if torch is None or transformers is None:
        return None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    )

    def logits(tokens: list[int]) -> Array:
        with torch.no_grad():
            return np.asarray(model(torch.tensor([tokens])).logits[0].numpy())

    return logits


def _import(name: str) -> Any:
    return importlib.import_module(name) if importlib.util.find_spec(name) else None
