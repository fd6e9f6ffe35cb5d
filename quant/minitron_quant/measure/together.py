"""Several models on one text, side by side: every chunk of the reference is computed once.

No logits go to disk: a chunk's reference is compared with every model and then forgotten. Models
that do not fit into memory together are taken in groups, and the reference runs once per group.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron_engine.context import Context, open_context
from minitron_engine.devices import GpuLayers, available_memory, default_threads
from minitron_engine.errors import Unsupported
from minitron_engine.model import Model, ModelSettings, Tokens, open_model
from minitron_engine.progress import Event, Progress, ignore
from minitron_quant.chunks import ChunkSettings, chunk_text, decode_chunks, read_text
from minitron_quant.measure.divergence import (
    Array,
    TokenScores,
    compare_chunk,
    reference_chunk,
)
from minitron_quant.models import open_model_files

# the share of the free memory that weights may take; the rest is for contexts and logits
_MEMORY_SHARE = 0.6


@dataclass(frozen=True)
class TogetherSettings:
    """A reference and the models to compare with it, all on one text."""

    reference: Path
    models: tuple[Path, ...]
    text: Path
    chunks: ChunkSettings
    gpu_layers: GpuLayers = "auto"


@dataclass(frozen=True)
class Compared:
    """One model's −ln p of the true tokens, chunk by chunk, and the device that it ran on.

    scores: what sets it apart from the reference; empty for the reference itself.
    """

    path: Path
    device: str
    nll: list[Array]
    scores: list[TokenScores]


def compare(settings: TogetherSettings, progress: Progress = ignore) -> Iterator[Compared]:
    """The reference, then every model compared with it; results come group by group, in order.

    Raises Unsupported where the vocabularies differ: their probabilities cannot be compared.
    """
    groups = group_by_memory(settings.reference, settings.models, available_memory())
    for number, group in enumerate(groups):
        reference, *others = _compare_group(settings, group, number, len(groups), progress)
        yield from others if number else (reference, *others)


def group_by_memory(
    reference: Path, models: Sequence[Path], available: int
) -> list[tuple[Path, ...]]:
    """Models in the order given, split where the next one would not fit beside the reference."""
    budget = _MEMORY_SHARE * available - reference.stat().st_size
    groups: list[list[Path]] = []
    used = 0.0
    for path in models:
        size = path.stat().st_size
        if not groups or used + size > budget:
            groups.append([])
            used = 0.0
        groups[-1].append(path)
        used += size
    return [tuple(group) for group in groups]


def _compare_group(
    settings: TogetherSettings,
    paths: tuple[Path, ...],
    number: int,
    groups: int,
    progress: Progress,
) -> list[Compared]:
    with ExitStack() as stack:
        model, context = _open(settings, settings.reference, stack)
        text = read_text(settings.text)
        chunks = chunk_text(model, text, settings.chunks, settings.text.name)
        opened = [_open(settings, path, stack) for path in paths]
        for path, (other, _) in zip(paths, opened, strict=True):
            _check_vocabulary(model, other, text, path)
        results = [
            Compared(path, m.device, [], [])
            for path, m in [
                (settings.reference, model),
                *((path, other) for path, (other, _) in zip(paths, opened, strict=True)),
            ]
        ]
        contexts = [context, *(other for _, other in opened)]
        threads = settings.chunks.threads or default_threads()
        pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="compare"))
        for start in range(0, len(chunks), settings.chunks.n_seq):
            part = chunks[start : start + settings.chunks.n_seq]
            _compare_part(settings, pool, part, contexts, results)
            done = number + (start + len(part)) / len(chunks)
            detail = f"{start + len(part)} of {len(chunks)} chunks"
            progress(Event("divergence", done, groups, "groups", detail))
        return results


def _compare_part(
    settings: TogetherSettings,
    pool: ThreadPoolExecutor,
    part: Tokens,
    contexts: Sequence[Context],
    results: Sequence[Compared],
) -> None:
    first = settings.chunks.n_ctx // 2
    targets = part[:, first + 1 :]
    ((_, logits),) = decode_chunks(contexts[0], part, settings.chunks, first)
    base = [reference_chunk(pool, x[:-1], y) for x, y in zip(logits, targets, strict=True)]
    results[0].nll.extend(chunk.nll for chunk in base)
    for context, result in zip(contexts[1:], results[1:], strict=True):
        ((_, logits),) = decode_chunks(context, part, settings.chunks, first)
        scores = [
            compare_chunk(pool, x[:-1], y, b) for x, y, b in zip(logits, targets, base, strict=True)
        ]
        result.scores.extend(scores)
        result.nll.extend(chunk.nll for chunk in scores)


def _open(settings: TogetherSettings, path: Path, stack: ExitStack) -> tuple[Model, Context]:
    open_model_files(path)
    context = settings.chunks.context()
    model = stack.enter_context(open_model(ModelSettings(path, settings.gpu_layers, context.n_ctx)))
    return model, stack.enter_context(open_context(model, context))


def _check_vocabulary(reference: Model, model: Model, text: str, path: Path) -> None:
    sample = text[:2000]
    ours = reference.tokenize(sample, add_special=True, parse_special=False)
    theirs = model.tokenize(sample, add_special=True, parse_special=False)
    if reference.n_vocab != model.n_vocab or not np.array_equal(ours, theirs):
        raise Unsupported(
            f"{path.name} has another vocabulary than the reference: nothing to compare",
            "the reference must be the same model at a higher precision",
        )
