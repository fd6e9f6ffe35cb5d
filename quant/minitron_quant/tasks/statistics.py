"""Intervals of scores, and whether two models really differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from minitron_quant.perplexity.measures import definition
from minitron_quant.tasks.answers import Answer

_Z = 1.95996398454  # of 95 %


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927), as llama-perplexity prints it: [0, 1] twice."""
    share, z = correct / total, _Z**2 / total
    middle = share + z / 2
    half = math.sqrt(z * (share * (1 - share) + z / 4))
    return max(0.0, (middle - half) / (1 + z)), min(1.0, (middle + half) / (1 + z))


@dataclass(frozen=True)
class Flips:
    """Answers compared with a reference's: only they are wrong (`lost`), or right (`gained`).

    flips: questions with another answer, right or not. mcnemar_p: exact and two-sided, of the
    hypothesis that losing is as likely as gaining.
    """

    flips: int = field(metadata=definition("Changed", "d"))
    lost: int = field(metadata=definition("Lost", "d"))
    gained: int = field(metadata=definition("Gained", "d"))
    mcnemar_p: float = field(metadata=definition("McNemar p", ".4f"))


def compare_answers(answers: Sequence[Answer], base: Sequence[Answer]) -> Flips:
    """Flips of one model's answers from the reference's to the same questions."""
    pairs = list(zip(answers, base, strict=True))
    lost = sum(was.right and not now.right for now, was in pairs)
    gained = sum(now.right and not was.right for now, was in pairs)
    flips = sum(now.chosen != was.chosen for now, was in pairs)
    return Flips(flips, lost, gained, mcnemar_p(lost, gained))


def mcnemar_p(lost: int, gained: int) -> float:
    """Two-sided exact p: the chance that a fair coin falls as unevenly, lost + gained times."""
    total, fewer = lost + gained, min(lost, gained)
    if lost == gained:
        return 1.0
    # whole numbers as long as they are, so that no rounding adds up
    ways = tail = 1
    for heads in range(fewer):
        ways = ways * (total - heads) // (heads + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << total))
