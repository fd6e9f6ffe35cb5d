"""A calibration text that the model writes itself, for users who have none."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minitron_core.atomic_files import write_whole
from minitron_core.errors import Unsupported
from minitron_core.progress import Event, Progress, ignore
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.slots import GenerationRequest, Slots
from minitron_engine.generation.steps import GenerationSettings
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings

# sequences decoded in one batch: weights are read once for all of them
SLOTS = 16
_ENDLESS = GenerationSettings(SamplingSettings(seed=0), n_predict=-1)


@dataclass(frozen=True)
class SyntheticTextSettings:
    """`tokens` in all, drawn from the model's distribution (temperature 1, no truncation).

    A sequence begins with BOS and ends at an end-of-generation token, or after n_ctx tokens.
    """

    tokens: int
    n_ctx: int = 512
    seed: int = 1
    threads: int | None = None


def synthetic_text_path(output: Path) -> Path:
    """The text that an importance matrix was calibrated on, beside it."""
    return output.with_name(f"{output.name}.txt")


def write_synthetic_text(
    model: Model, settings: SyntheticTextSettings, path: Path, progress: Progress = ignore
) -> None:
    """Sample the text and write it, a line break between sequences.

    Raises Unsupported for a model without a BOS token to begin with.
    """
    if model.bos < 0:
        raise Unsupported(f"{model.path.name} has no token to begin a text with", "give -f TEXT")
    texts = (map(model.piece, tokens) for tokens in _sample(model, settings, progress))
    write_whole(path, b"\n".join(map(b"".join, texts)) + b"\n")


def _sample(model: Model, settings: SyntheticTextSettings, progress: Progress) -> list[list[int]]:
    """The tokens of the sequences, in the order in which they began."""
    count = min(SLOTS, -(-settings.tokens // settings.n_ctx))
    context_settings = ContextSettings(
        n_ctx=count * settings.n_ctx, n_batch=count, n_seq=count, threads=settings.threads
    )
    sampler = _Draw(np.random.default_rng(settings.seed))
    requests: list[GenerationRequest] = []
    with open_context(model, context_settings) as context:
        slots = Slots(context, count, settings.n_ctx)

        def begin() -> None:
            bos = np.array([model.bos], dtype=np.int32)
            requests.append(GenerationRequest(bos, _ENDLESS, sampler))
            slots.submit(requests[-1])

        for _ in range(count):
            begin()
        for sampled in range(count, settings.tokens + count, count):
            for request, _ in slots.step():
                if request.error is not None:
                    raise request.error
                if request.done:
                    begin()
            done = min(sampled, settings.tokens)
            progress(Event("synthetic text", done, settings.tokens, "tokens"))
    return [request.result.tokens for request in requests if request.done or request.result.tokens]


class _Draw:
    """Draws from the model's own distribution."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def sample(self, context: Context, output: int = -1) -> int:
        """A token with the probability that softmax gives it."""
        return draw(context.output_logits(output), self._random)


def draw(logits: NDArray[np.float32], random: np.random.Generator) -> int:
    """Draw a token with its softmax probability."""
    sums = np.cumsum(np.exp(logits - logits.max()), dtype=np.float64)
    drawn = int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
    return min(drawn, len(sums) - 1)
