"""Log-probabilities of tokens: of the one that comes next, and of the likeliest."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import Damaged


@dataclass(frozen=True)
class TokenLogprob:
    """ln p of a token by the model's own logits; top: the likeliest tokens with theirs, in order.

    Samplers, biases and grammars do not change them.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: NDArray[np.float32], token: int, most: int) -> TokenLogprob:
    """The token's ln p = logit − ln Σ exp(logits), and those of the `most` likeliest.

    Raises Damaged for logits that are not numbers.
    """
    highest = logits.max()
    log_sum = float(np.log(np.exp(logits - highest).sum(dtype=np.float64))) + float(highest)
    if not np.isfinite(log_sum):
        raise Damaged("the model computes no numbers (NaN): its weights are damaged")
    best = likeliest(logits, most)
    top = tuple((int(each), float(logits[each]) - log_sum) for each in best)
    return TokenLogprob(token, float(logits[token]) - log_sum, top)


def likeliest(logits: NDArray[np.float32], most: int) -> NDArray[np.intp]:
    """The tokens with the largest logits, the first of equals first."""
    if most <= 1:
        return np.array([logits.argmax()])[:most]
    least = np.partition(logits, -most)[-most] if most < len(logits) else -np.inf
    some = np.flatnonzero(logits >= least)
    return some[np.argsort(-logits[some], kind="stable")][:most]
