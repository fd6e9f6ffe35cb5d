"""Speculative decoding: a drafter proposes several tokens, the model checks them in one batch.

A drafted token is accepted only if it is what the sampler chooses from the model's own logits at
that place, with the same random numbers as without drafts. So the only difference from plain
decoding is that a batch rounds the last bits of logits differently than single tokens do.

Greedy decoding closes that gap too (`ExactVerifier`): where the logits of the two likeliest tokens
are closer than rounding can move them, the tokens since the last such place are decoded again one
by one, as plain decoding does, and the choice is made from those logits.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from minitron_core.errors import Unsupported
from minitron_engine.generation.sampler import TokenSampler
from minitron_engine.generation.sequence import Sequence, common_prefix
from minitron_engine.llama.model import Model

_LONGEST_MATCH = 4
_SAFETY = 16  # times the rounding that was measured
_ENOUGH = 36  # rows that were the same bit for bit: a width at which not all are shows by then
_FLOAT_FILES = ("0", "1", "32")  # general.file_type of F32, F16 and BF16
_KERNEL_STEP = 256  # attention is computed over this many more places at once


class Drafter(Protocol):
    """Proposes the next tokens."""

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow these."""


@dataclass
class PromptLookup:
    """Prompt lookup: drafts what followed the same last tokens earlier in the text."""

    _seen: dict[tuple[int, ...], int] = field(default_factory=dict)
    _known: list[int] = field(default_factory=list)

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """What follows the longest, and then latest, earlier match of the last tokens."""
        if tokens[: len(self._known)] != self._known:
            self._seen, self._known = {}, []  # the context was shifted
        for end in range(max(len(self._known), 1), len(tokens)):
            for length in range(2, _LONGEST_MATCH + 1):
                self._seen[tuple(tokens[max(end - length, 0) : end])] = end
        self._known = tokens[:-1]
        for length in range(min(_LONGEST_MATCH, len(tokens)), 1, -1):
            place = self._seen.get(tuple(tokens[-length:]))
            if place is not None:
                return tokens[place : place + most]
        return []


class DraftModel:
    """Drafts with a smaller model, as long as that is sure enough."""

    def __init__(self, sequence: Sequence, theirs: Model, least: float) -> None:
        """theirs: the model that checks; least: the probability below which it drafts no token.

        Raises Unsupported where the two models have different vocabularies.
        """
        ours = sequence.context.model
        some = range(0, theirs.n_vocab, max(theirs.n_vocab // 500, 1))
        same = ours.n_vocab == theirs.n_vocab and all(
            ours.piece(token, special=True) == theirs.piece(token, special=True) for token in some
        )
        if not same:
            raise Unsupported(
                f"{ours.path.name} has other tokens than {theirs.path.name}",
                "a draft model needs the same vocabulary, as a low level of the model has it",
            )
        self._sequence = sequence
        self._least = least

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """The draft model's likeliest tokens, one after the other."""
        sequence, found = self._sequence, list[int]()
        if len(tokens) + most >= sequence.context.n_ctx:
            return []
        sequence.forget(min(common_prefix(sequence.tokens, tokens), len(tokens) - 1))
        sequence.append(tokens[len(sequence) :])
        while len(found) < most:
            logits = sequence.context.logits(1)[0]
            best = int(logits.argmax())
            # the probability of the likeliest token is one over this sum
            if 1 / float(np.exp(logits - logits[best]).sum()) < self._least:
                break
            found.append(best)
            if len(found) < most:
                sequence.append([best])
        return found


class ExactVerifier:
    """Makes the greedy choices of decoding token by token, from batches.

    The kernels, and so the rounding, depend on how many tokens are computed at once. So all batches
    have one width: the largest at which every bit of the logits equals that of single tokens, if
    there is one. If not, a choice counts only if its lead is larger than what rounding can do.
    """

    def __init__(self, sequence: Sequence, width: int) -> None:
        self.width = width
        self._widest = width
        self._sequence = sequence
        self._base = len(sequence)  # up to here the cache is as plain decoding leaves it
        self._lead = 0.0  # in logits; 0 as long as no bit differs
        self._equal: Counter[tuple[int, int]] = Counter()  # rows, by width and size of attention
        # where activations are quantized, the smallest rounding can move them by a whole step
        weights = sequence.context.model.metadata("general.file_type")
        self._least_lead = 0.1 if weights in _FLOAT_FILES else 0.5

    def fits(self) -> bool:
        """Whether the attention of the next batch has one size."""
        start, end = len(self._sequence), len(self._sequence) + self.width
        return start // _KERNEL_STEP == (end - 1) // _KERNEL_STEP

    def usable(self) -> bool:
        """Whether choices may be made from the last batch.

        The first batches are only compared with their tokens one by one and removed again: the
        cache would keep differences that the logits do not show.
        """
        place = (self.width, (len(self._sequence) - 1) // _KERNEL_STEP)
        if self._lead or self._equal[place] >= _ENOUGH:
            return True
        self._equal[place] += self.width
        moved = self._moved()
        if moved:
            self.width //= 2
        if self.width < 2:
            self.width, self._lead = self._widest, max(_SAFETY * moved, self._least_lead)
        return False

    def _moved(self) -> float:
        # how far the last batch's logits are from those of its tokens one by one; removes the batch
        sequence, width = self._sequence, self.width
        batched = sequence.context.logits(width).copy()
        batch = sequence.tokens[-width:]
        self._recompute(len(sequence) - width)
        moved = 0.0
        for row, token in enumerate(batch):
            sequence.append([token])
            moved = max(moved, float(np.abs(sequence.context.logits(1)[0] - batched[row]).max()))
        sequence.forget(len(sequence) - width)
        return moved

    def needs_recheck(self, row: int, rows: int) -> bool:
        """Whether decoding one by one could choose another token at this row of the last batch."""
        end = len(self._sequence) - rows + row + 1
        if not self._lead or (rows == 1 and self._base == end - 1):
            self._base = end
            return False
        second, first = np.partition(self._sequence.context.logits(rows)[row], -2)[-2:]
        return bool(first - second < self._lead)

    def recheck(self, row: int, rows: int) -> None:
        """Decode the tokens up to this row one by one; its logits are the context's last then."""
        batched = self._sequence.context.logits(rows)[row].copy()
        self._recompute(len(self._sequence) - rows + row + 1)
        moved = float(np.abs(self._sequence.context.logits(1)[0] - batched).max())
        self._lead = max(self._lead, _SAFETY * moved)

    def _recompute(self, end: int) -> None:
        again = self._sequence.tokens[self._base : end]
        self._sequence.forget(self._base)
        for token in again:
            self._sequence.append([token])
        self._base = end


@dataclass
class Speculation:
    """A drafter, and how many of its tokens were drafted and accepted."""

    drafter: Drafter
    most: int
    verifier: ExactVerifier | None = None
    drafted: int = 0
    accepted: int = 0

    def follow(
        self, sequence: Sequence, sampler: TokenSampler, token: int, room: int
    ) -> Iterator[int | None]:
        """Decode a token and drafted ones after it; yields the tokens that the sampler chooses.

        room: the most tokens to yield. Closing the iterator removes what was not accepted.
        """
        draft = self._draft(sequence, token, room)
        kept = len(sequence) + 1
        batch = [token, *draft]
        if draft and self.verifier is not None:
            batch += draft[-1:] * (self.verifier.width - len(batch))
        sequence.append(batch, every=True)
        verifier = self.verifier
        if verifier is not None and draft and not verifier.usable():
            draft, batch = [], [token]
            sequence.append(batch)
        self.drafted += len(draft)
        try:
            for row in range(len(draft) + 1):
                rechecked = verifier is not None and verifier.needs_recheck(row, len(batch))
                if verifier is not None and rechecked:
                    verifier.recheck(row, len(batch))
                chosen = sampler.sample(sequence.context, -1 if rechecked else row)
                hit = row < len(draft) and chosen == draft[row]
                self.accepted += hit
                kept += hit and not rechecked
                yield chosen
                if rechecked or not hit:
                    return
        finally:
            sequence.forget(kept)

    def _draft(self, sequence: Sequence, token: int, room: int) -> list[int]:
        left = sequence.context.n_ctx - len(sequence) - 2
        most = min(self.most, room - 1, left)
        if self.verifier is not None:
            fits = left >= self.verifier.width and self.verifier.fits()
            most = min(most, self.verifier.width - 1) if fits else 0
        return self.drafter.propose([*sequence.tokens, token], most) if most > 0 else []
