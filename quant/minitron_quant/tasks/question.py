"""A question with choices, whatever its file looked like, and which tokens of them are scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minitron_core.errors import Damaged

if TYPE_CHECKING:
    from minitron_engine.llama.model import Model
    from minitron_engine.llama.tokenization import Tokens


@dataclass(frozen=True)
class Question:
    """`choices`: (context, continuation) of each answer; `gold`: the indices of the right ones.

    `where`: its place in the data, for errors.
    """

    where: str
    choices: tuple[tuple[str, str], ...]
    gold: frozenset[int]


@dataclass(frozen=True)
class Continuation:
    """Tokens; those from `start` (1 or more) on are scored, each predicted by all before it."""

    tokens: Tokens
    start: int

    @property
    def inputs(self) -> Tokens:
        """What goes through the model: the last token predicts nothing that is scored."""
        return self.tokens[:-1]


Encode = Callable[["Model", Question], list[Continuation]]


def after_common(model: Model, question: Question) -> list[Continuation]:
    """Score what comes after the tokens that all choices begin with: llama.cpp's rule."""
    from minitron_engine.generation.sequence import common_prefix

    wholes = _whole_tokens(model, question)
    common = min(common_prefix(wholes[0], other) for other in wholes)
    start = max(1, min(common, min(map(len, wholes)) - 1))
    return [Continuation(tokens, start) for tokens in wholes]


def after_context(model: Model, question: Question) -> list[Continuation]:
    """Score what comes after as many tokens as the context alone has: lm-evaluation-harness's."""
    wholes = _whole_tokens(model, question)
    lengths = [len(_tokens(model, context)) for context, _ in question.choices]
    return [
        Continuation(tokens, max(1, min(length, len(tokens) - 1)))
        for tokens, length in zip(wholes, lengths, strict=True)
    ]


def _whole_tokens(model: Model, question: Question) -> list[Tokens]:
    """The tokens of each choice with its context, tokenized in one piece as llama.cpp does."""
    wholes = [_tokens(model, context + answer) for context, answer in question.choices]
    if min(map(len, wholes)) < 2:
        raise Damaged(f"{question.where}: an answer has no text")
    return wholes


def _tokens(model: Model, text: str) -> Tokens:
    return model.tokenize(text, add_special=True, parse_special=False)
