"""All checks of a GGUF file against its checkpoint, the running model included."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minitron_convert.convert import ConvertSettings
from minitron_convert.hf_reference import source_encoder, source_logits
from minitron_convert.verify import TEXTS, Check, Encode, check_logits, check_token_ids
from minitron_convert.verify import verify as verify_file
from minitron_core.gguf import open_shards
from minitron_core.progress import Progress, ignore
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model

INSTALL = "pip install 'minitron[transformers]'"


class Verification(NamedTuple):
    """The checks that were made, and what was not checked, by name, with the reason."""

    checks: tuple[Check, ...]
    skipped: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)


def verify(
    settings: ConvertSettings, model: Path, *, logits: bool = True, progress: Progress = ignore
) -> Verification:
    """Compare a GGUF file with the checkpoint in `settings`: keys, shapes, values, token ids.

    logits: compare them too, where transformers is installed; it takes four bytes of memory for
    every weight. Where keys, tensors or values differ the model does not run, because llama.cpp may
    abort on it. Raises as `convert` does where one of the two cannot be read.
    """
    found = verify_file(settings, model, progress)
    checks, skipped = list(found.checks), {}
    encode = source_encoder(settings.source)
    if not found.passed:
        skipped["token ids"] = skipped["logits"] = "the file differs"
    elif encode is None:
        skipped["token ids"] = skipped["logits"] = (
            f"tokenizers and sentencepiece are not installed: {INSTALL}"
        )
    else:
        with open_model(ModelSettings(model, gpu_layers=0, vocab_only=True)) as loaded:
            checks.append(check_token_ids(encode, _encoder(loaded)))
        reference = source_logits(settings.source) if logits else None
        if reference is not None:
            types = {info.type for shard in open_shards(model) for info in shard.tensors}
            tokens = encode(" ".join(TEXTS))
            with _running(model, len(tokens)) as run:
                checks.append(check_logits(tokens, reference, run, types))
        elif logits:
            skipped["logits"] = f"transformers is not installed: {INSTALL}"
    return Verification(tuple(checks), skipped)


def _encoder(model: Model) -> Encode:
    def encode(text: str) -> list[int]:
        return [int(i) for i in model.tokenize(text, add_special=False, parse_special=False)]

    return encode


class _Run:
    """The logits of a model: [tokens, vocabulary] of a list of tokens."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __call__(self, tokens: list[int]) -> NDArray[np.float32]:
        count = len(tokens)
        # the cache in full precision, so that the comparison shows the file's weights
        settings = ContextSettings(count, count, cache_type_k="f32", cache_type_v="f32")
        batch = Batch(count)
        batch.add(np.array(tokens, np.int32), 0, 0, np.ones(count, np.bool_))
        with open_context(self._model, settings) as context:
            context.decode(batch)
            return context.logits(count).copy()


@contextmanager
def _running(path: Path, n_ctx: int) -> Iterator[_Run]:
    with open_model(ModelSettings(path, "auto", n_ctx)) as model:
        yield _Run(model)
