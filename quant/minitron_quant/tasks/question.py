"""A question with choices, whatever its file looked like, and which tokens of them are scored."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minitron_core.errors import Damaged
from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.tasks.likelihood import Array, Likelihood
from minitron_quant.tasks.prefix_sharing import Continuation, common_prefix, without_middle


@dataclass(frozen=True)
class Question:
    """`choices`: (context, continuation) of each answer; `gold`: the indices of the right ones.

    `where`: its place in the data, for errors.
    """

    where: str
    choices: tuple[tuple[str, str], ...]
    gold: frozenset[int]


Encode = Callable[[Model, Question], list[Continuation]]


def _tokens(model: Model, text: str) -> Tokens:
    return model.tokenize(text, add_special=True, parse_special=False)


def whole_tokens(model: Model, question: Question) -> list[Tokens]:
    """The tokens of each choice with its context, tokenized in one piece as llama.cpp does."""
    wholes = [_tokens(model, context + answer) for context, answer in question.choices]
    if min(map(len, wholes)) < 2:
        raise Damaged(f"{question.where}: an answer has no text")
    return wholes


def after_common(model: Model, question: Question) -> list[Continuation]:
    """Score what comes after the tokens that all choices begin with: llama.cpp's rule."""
    wholes = whole_tokens(model, question)
    common = min(common_prefix(wholes[0], other) for other in wholes)
    start = max(1, min(common, min(map(len, wholes)) - 1))
    return [Continuation(tokens, start) for tokens in wholes]


def after_context(model: Model, question: Question) -> list[Continuation]:
    """Score what comes after as many tokens as the context alone has: lm-evaluation-harness's."""
    wholes = whole_tokens(model, question)
    lengths = [len(_tokens(model, context)) for context, _ in question.choices]
    return [
        Continuation(tokens, max(1, min(length, len(tokens) - 1)))
        for tokens, length in zip(wholes, lengths, strict=True)
    ]


def cut(item: Continuation, n_ctx: int, keep: int) -> Continuation:
    """A continuation of at most n_ctx inputs: what is too much goes after the first `keep`."""
    tokens = without_middle(item.tokens, n_ctx + 1, keep)
    if tokens is item.tokens:
        return item
    return Continuation(tokens, max(1, item.start - (len(item.tokens) - len(tokens))))


def score(question: Question, likelihoods: list[Likelihood], normalize: str) -> Array:
    """One number per choice, higher is likelier: Σ ln p, or that per token or per character."""
    totals = np.array([item.log_p.sum() for item in likelihoods])
    if normalize == "tokens":
        return totals / [len(item.log_p) for item in likelihoods]
    if normalize == "characters":
        return totals / [max(len(answer.strip()), 1) for _, answer in question.choices]
    return totals
