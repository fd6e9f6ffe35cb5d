"""What lm-evaluation-harness asks of a model, and the adapter that answers it there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_core.errors import Damaged, Unsupported
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.tasks.batch_generate import GreedySettings, generate_batch
from minitron_quant.tasks.likelihood import ScoreSettings
from minitron_quant.tasks.lm_eval_requests import (
    loglikelihoods,
    rolling_loglikelihoods,
    rolling_windows,
)

# float arithmetic depends on what else is in a batch: per scored token
NOISE = 0.02
TEXTS = (
    "The old house stood on a hill, and nobody had lived there for years.",
    "She had never seen him before.",
    "",
)


@pytest.fixture(scope="module")
def model(nano_llama: Path) -> Iterator[Model]:
    with open_model(ModelSettings(nano_llama)) as opened:
        yield opened


def plain(model: Model, tokens: list[int], start: int) -> tuple[float, bool]:
    """Σ ln p of tokens[start:] and whether all are the likeliest, from one sequence alone."""
    batch = Batch(len(tokens))
    batch.add(np.array(tokens, dtype=np.int32), 0, 0, np.ones(len(tokens), dtype=np.bool_))
    with open_context(model, ContextSettings(512, 512)) as context:
        context.decode(batch)
        logits = context.logits(len(tokens)).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    scored = range(start, len(tokens))
    greedy = all(logits[at - 1].argmax() == tokens[at] for at in scored)
    return float(sum(log_p[at - 1][tokens[at]] for at in scored)), greedy


def ids(model: Model, text: str, special: bool = True) -> list[int]:
    return [int(x) for x in model.tokenize(text, add_special=special, parse_special=False)]


def test_loglikelihoods_in_any_order(model: Model) -> None:
    best = generate_batch(model, [TEXTS[0][:20]], GreedySettings((), 2))[0][0]
    pairs = [
        (ids(model, context), ids(model, ending, special=False))
        for context, ending in (
            (TEXTS[0], " It was dark."),
            (TEXTS[1], " No."),
            (TEXTS[0], " It was light."),
            (TEXTS[0][:20], best),
        )
    ]
    heard: list[int] = []
    found = loglikelihoods(model, pairs, 512, ScoreSettings(64), heard.append)
    for (context, scored), (log_p, greedy) in zip(pairs, found, strict=True):
        expected, expected_greedy = plain(model, context + scored, len(context))
        assert log_p == pytest.approx(expected, abs=NOISE * len(scored))
        assert greedy == expected_greedy
    assert heard[-1] == 4


@given(st.integers(0, 40), st.integers(1, 12))
def test_rolling_windows_predict_every_token_once(length: int, n_ctx: int) -> None:
    tokens = np.arange(1, length + 1, dtype=np.int32)
    windows = list(rolling_windows(tokens, 0, n_ctx))
    scored = [int(token) for window in windows for token in window.tokens[window.start :]]
    assert scored == list(tokens)
    for number, window in enumerate(windows):
        assert 1 <= len(window.inputs) <= n_ctx
        # as much before a token as fits, and the beginning stands behind the prefix
        assert number == 0 or len(window.inputs) == n_ctx
        np.testing.assert_array_equal(np.diff(window.tokens), 1)


def test_rolling_loglikelihoods_sum_all_tokens(model: Model) -> None:
    heard: list[int] = []
    found = rolling_loglikelihoods(model, TEXTS, 512, ScoreSettings(64), heard.append)
    for text, log_p in zip(TEXTS, found, strict=True):
        tokens = [model.bos, *ids(model, text, special=False)]
        assert log_p == pytest.approx(plain(model, tokens, 1)[0], abs=NOISE * len(tokens))
    assert heard[-1] == 3 and found[2] == 0
    (cut,) = rolling_loglikelihoods(model, TEXTS[:1], 6, ScoreSettings(64), heard.append)
    tokens = np.array(ids(model, TEXTS[0], special=False), dtype=np.int32)
    windows = rolling_windows(tokens, model.bos, 6)
    parts = [plain(model, [int(x) for x in window.tokens], window.start)[0] for window in windows]
    assert len(parts) > 2 and cut == pytest.approx(sum(parts), abs=NOISE * len(tokens))


def request(kind: str, *arguments: Any) -> Any:
    instance = pytest.importorskip("lm_eval.api.instance")
    return instance.Instance(kind, {}, arguments, 0)


@pytest.fixture(scope="module")
def adapter(nano_llama: Path) -> Iterator[Any]:
    pytest.importorskip("lm_eval", reason="needs the extra lm_eval")
    from lm_eval.api.registry import get_model

    import minitron_quant.tasks.lm_eval_adapter  # noqa: F401  (registers the model)

    made = get_model("minitron").create_from_arg_string(
        f"path={nano_llama},batch=256,max_length=512", {"batch_size": 1, "device": None}
    )
    yield made
    made.close()


def test_adapter_loglikelihood(adapter: Any, model: Model) -> None:
    asked = [("The old house", " stood there."), ("", "It was dark."), ("The old ", "house")]
    requests = [request("loglikelihood", *pair) for pair in asked]
    found = adapter.loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), (log_p, greedy) in zip(asked, found, strict=True):
        tokens = ids(model, context + continuation)
        start = len(ids(model, context.rstrip()))
        expected = plain(model, tokens, start)
        assert log_p == pytest.approx(expected[0], abs=NOISE * len(tokens))
        assert greedy == expected[1]
    rolling = [request("loglikelihood_rolling", text) for text in TEXTS[:2]]
    np.testing.assert_allclose(
        adapter.loglikelihood_rolling(rolling, disable_tqdm=True),
        rolling_loglikelihoods(model, TEXTS[:2], 512, ScoreSettings(256), lambda _count: None),
        atol=NOISE * 20,
    )


def test_adapter_generate_until(adapter: Any, model: Model) -> None:
    prompts, stops = ("The old house", "She had never", "It was"), (["e"], " ", None)
    asked = [
        request("generate_until", prompt, {"until": stop, "max_gen_toks": 6})
        for prompt, stop in zip(prompts, stops, strict=True)
    ]
    found = adapter.generate_until(asked, disable_tqdm=True)
    for prompt, text, stop in zip(prompts, found, stops, strict=True):
        assert [text] == generate_batch(model, [prompt], GreedySettings(tuple(stop or ()), 6))[0]
    with pytest.raises(Unsupported, match="sampled"):
        sampled = request("generate_until", "It was", {"do_sample": True, "temperature": 0.7})
        adapter.generate_until([sampled])


def test_a_file_that_is_no_model(adapter: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"no model")
    with pytest.raises(Damaged, match="does not begin"):
        type(adapter)(path=str(path))
