"""What llama.cpp's numbers can be held to with the CPU kernels of the loaded library.

ggml adds up products in an order, and with or without fused multiplication, that depend on the
instruction set it was compiled for. Logits and all that is computed from them (perplexity,
divergence, sampled texts, sums of an importance matrix) are recorded for three sets, and with any
of them ours are the same to the last decimal. VNNI, VBMI and BF16 beside AVX-512 change none of
them; FP16 does. With other kernels (older x86, AMX, ARM) the same tests compare with the recordings
of AVX2, within tolerances that are some times what a build for SSE4.2 was measured to be off.
Quantized bytes, plans, headers and vocabularies do not depend on the instruction set.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import pytest

from helpers.half_arithmetic import adds_in_half
from helpers.support import RECORDED
from minitron_engine.generation.generate import generate
from minitron_engine.generation.sampler import open_sampler
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.sequence import Sequence
from minitron_engine.generation.steps import GenerationSettings, collect
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import Context
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.perplexity.measures import Row

T = TypeVar("T")

# how far logits of the bundled models move with what else is in a batch; measured with AVX-512,
# AVX2 and SSE4.2: up to 0.009
ROUNDING = 0.02


def _instruction_set() -> str:
    """The set of recordings that holds for the loaded library, as ggml reports its kernels."""
    features = set(re.findall(r"(\w+) = 1", api.llama_print_system_info().decode()))
    # AMX has products of its own for quantized weights
    if not {"AVX2", "FMA", "F16C"} <= features or "AMX_INT8" in features:
        return ""
    if "AVX512" not in features:
        return "avx2"
    return "avx512_fp16" if adds_in_half() else "avx512"


INSTRUCTION_SET = _instruction_set()


def recorded(name: str) -> Any:
    """A recording made with this set, or with AVX2 where there is none for it."""
    return json.loads((RECORDED / (INSTRUCTION_SET or "avx2") / name).read_text())


def allowed(exact: T, *, others: T) -> T:
    """A tolerance: the first one with kernels that recordings were made with."""
    return exact if INSTRUCTION_SET else others


def same_running(row: Row, expected: list[float]) -> None:
    """The perplexity after each of a text's first chunks."""
    means = np.cumsum(row.chunk_nll) / np.arange(1, row.chunks + 1)
    found = np.exp(means[: len(expected)])
    # on the way the fourth decimal may be rounded to the other side; SSE4.2 beside AVX2 differs by
    # up to 0.27 % after one chunk of a level, and by a tenth of that after eight
    np.testing.assert_allclose(found, expected, rtol=allowed(0, others=5e-3), atol=1.01e-4)


def same_perplexity(row: Row, entry: Mapping[str, Any]) -> None:
    """Perplexity and its error to the decimals that are printed; with other kernels to 0.1 %."""
    if INSTRUCTION_SET:
        assert f"{row.ppl:.4f}" == f"{entry['ppl']:.4f}"
        assert f"{row.ppl_error:.5f}" == f"{entry['error']:.5f}"
    assert row.ppl == pytest.approx(entry["ppl"], rel=1e-3)
    assert row.ppl_error == pytest.approx(entry["error"], rel=1e-3)
    assert row.chunks == entry["chunks"]
    same_running(row, entry["running"])


def same_answer(
    context: Context, settings: GenerationSettings, prompt: Tokens, entry: Mapping[str, Any]
) -> None:
    """Generate, and compare with a recorded answer, or with as much of it as the settings allow.

    With other kernels: each token chosen after the recorded ones, as a choice that rounding changes
    would change all that follow. With SSE4.2 83 % to all of them are; with another seed or one
    parameter of the sampler changed, 65 % at most. Without recorded ids: the text's beginning.
    """
    context.clear()
    result = collect(generate(context, prompt, settings))
    text, tokens, length = entry["text"], entry["tokens"], settings.n_predict
    if length < entry["length"]:
        # the last character may have been cut
        text = text[: len(result.text.removesuffix("\ufffd"))]
    if INSTRUCTION_SET:
        assert result.text.removesuffix("\ufffd") == text.removesuffix("\ufffd")
        assert tokens is None or result.tokens == tokens[:length]
    elif tokens is None:
        # no ids to follow: the first word, as the draws after another token are others
        assert result.text[:4] == text[:4] and len(result.tokens) == length
    else:
        assert followed(context, settings.sampling, prompt.tolist(), tokens[:length]) > 0.8


def followed(
    context: Context, sampling: SamplingSettings, prompt: list[int], tokens: list[int]
) -> float:
    """The share of these tokens that the sampler chooses, each after those before it."""
    with open_sampler(context.model, sampling) as sampler:
        sampler.accept_prompt(prompt)
        sequence, hits = Sequence(context), 0
        sequence.append(prompt)
        for token in tokens:
            hits += sampler.sample(context) == token
            sequence.append([token])
    return hits / len(tokens)


def certain(context: Context, prompt: list[int], length: int) -> list[int]:
    """The greedy answer of one sequence alone, as far as no rounding can change it.

    It ends before the first token that leads the second likeliest by less than both may move.
    """
    context.clear()
    sequence, found = Sequence(context), list[int]()
    sequence.append(prompt)
    while len(found) < length:
        logits = context.logits(1)[0]
        second, first = np.partition(logits, -2)[-2:]
        token = int(logits.argmax())
        if first - second <= 2 * ROUNDING or context.model.is_end(token):
            break
        found.append(token)
        sequence.append([token])
    return found
