"""A calibration text written by the model itself, for users who have none."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minitron_core.atomic_files import write_whole
from minitron_core.errors import Unsupported
from minitron_core.progress import Event, Progress, ignore
from minitron_engine.llama.context import Batch, Context, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings

# sequences that are written side by side: weights are read once for all of them
SLOTS = 16


@dataclass(frozen=True)
class SyntheticTextSettings:
    """`tokens` in all, drawn from the model's own distribution (temperature 1, nothing cut off).

    A sequence begins with BOS and ends where the model ends it, or after n_ctx tokens.
    """

    tokens: int
    n_ctx: int = 512
    seed: int = 1
    threads: int | None = None


@dataclass
class _Sequence:
    position: int = 0
    token: int = -1
    text: list[bytes] = field(default_factory=list)


def write_synthetic_text(
    model: Model, settings: SyntheticTextSettings, path: Path, progress: Progress = ignore
) -> None:
    """Sample the text and write it, a line break between two sequences.

    Raises Unsupported for a model without BOS: it has nothing to begin with.
    """
    if model.bos < 0:
        raise Unsupported(f"{model.path.name} has no token to begin a text with", "give -f TEXT")
    sequences = list(_sample(model, settings, progress))
    write_whole(path, b"\n".join(b"".join(sequence.text) for sequence in sequences) + b"\n")


def _sample(
    model: Model, settings: SyntheticTextSettings, progress: Progress
) -> Iterator[_Sequence]:
    """The sequences, in the order in which they began."""
    slots = min(SLOTS, -(-settings.tokens // settings.n_ctx))
    context_settings = ContextSettings(
        n_ctx=slots * settings.n_ctx, n_batch=slots, n_seq=slots, threads=settings.threads
    )
    random = np.random.default_rng(settings.seed)
    active = [_begun(model) for _ in range(slots)]
    done = list(active)
    sampled = 0
    with open_context(model, context_settings) as context:
        batch = Batch(slots)
        while sampled < settings.tokens:
            logits = _step(context, batch, active)
            for slot, sequence in enumerate(active):
                sequence.token = draw(logits[slot], random)
                sequence.text.append(model.piece(sequence.token))
                if model.is_end(sequence.token) or sequence.position == settings.n_ctx:
                    context.forget(slot)
                    active[slot] = _begun(model)
                    done.append(active[slot])
            sampled += slots
            progress(Event("self", min(sampled, settings.tokens), settings.tokens, "tokens"))
    yield from (sequence for sequence in done if sequence.text)


def _begun(model: Model) -> _Sequence:
    return _Sequence(token=model.bos)


def _step(context: Context, batch: Batch, active: list[_Sequence]) -> NDArray[np.float32]:
    """Decode the newest token of every sequence; logits [sequences, n_vocab]."""
    batch.clear()
    for slot, sequence in enumerate(active):
        token = np.array([sequence.token], dtype=np.int32)
        batch.add(token, sequence.position, slot, np.ones(1, dtype=np.bool_))
        sequence.position += 1
    context.decode(batch)
    return context.logits(len(active))


def draw(logits: NDArray[np.float32], random: np.random.Generator) -> int:
    """A token with the probability that softmax gives it."""
    sums = np.cumsum(np.exp(logits - logits.max()), dtype=np.float64)
    drawn = int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
    return min(drawn, len(sums) - 1)
