"""The requests of lm-evaluation-harness: loglikelihood of continuations and of whole texts."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.tasks.likelihood import ScoreSettings, likelihoods
from minitron_quant.tasks.prefix_sharing import shorten
from minitron_quant.tasks.question import Continuation

# requests that are in memory as tokens at a time
_WINDOW = 512
_TEXTS = 32

OnDone = Callable[[int], None]
# the tokens of a context, and those of the continuation that is scored
TokenPair = tuple[Sequence[int], Sequence[int]]


def loglikelihoods(
    model: Model, pairs: Sequence[TokenPair], n_ctx: int, settings: ScoreSettings, on_done: OnDone
) -> list[tuple[float, bool]]:
    """Σ ln p of each continuation, and whether greedy decoding would generate it.

    Every context has a token or more. Beyond n_ctx tokens a pair loses its beginning.
    """
    # requests with a common prefix share it, wherever they were in the list
    order = sorted(range(len(pairs)), key=lambda number: tuple(map(tuple, pairs[number])))
    results = [(0.0, True)] * len(pairs)
    for start in range(0, len(order), _WINDOW):
        window = order[start : start + _WINDOW]
        items = [_continuation(*pairs[number]) for number in window]
        found = likelihoods(model, [shorten(item, n_ctx, 0) for item in items], settings)
        for count, (number, item) in enumerate(zip(window, found, strict=True), start + 1):
            results[number] = float(item.log_p.sum()), item.greedy
            on_done(count)
    return results


def _continuation(context: Sequence[int], scored: Sequence[int]) -> Continuation:
    return Continuation(np.array([*context, *scored], dtype=np.int32), len(context))


def rolling_loglikelihoods(
    model: Model, texts: Sequence[str], n_ctx: int, settings: ScoreSettings, on_done: OnDone
) -> list[float]:
    """Σ ln p of every token of each text, each text by itself.

    Longer texts are cut into windows of n_ctx tokens; the last one reaches back to be full, and
    scores only what is new.
    """
    results: list[float] = []
    for start in range(0, len(texts), _TEXTS):
        windows = []
        for text in texts[start : start + _TEXTS]:
            tokens = model.tokenize(text, add_special=False, parse_special=False)
            windows.append(list(rolling_windows(tokens, prefix_token(model), n_ctx)))
        found = likelihoods(model, [item for items in windows for item in items], settings)
        for items in windows:
            results.append(sum(float(next(found).log_p.sum()) for _ in items))
            on_done(len(results))
    return results


def prefix_token(model: Model) -> int:
    """The token before a text without context: BOS, or EOS where the model has none."""
    return model.bos if model.bos >= 0 else model.eos


def rolling_windows(tokens: Tokens, prefix: int, n_ctx: int) -> Iterator[Continuation]:
    """Windows of at most n_ctx inputs in which every token is predicted exactly once."""
    whole = np.concatenate([np.array([prefix], dtype=np.int32), tokens])
    for start in range(1, len(whole), n_ctx):
        end = min(start + n_ctx, len(whole))
        first = max(0, end - n_ctx - 1)
        yield Continuation(whole[first:end], start - first)
