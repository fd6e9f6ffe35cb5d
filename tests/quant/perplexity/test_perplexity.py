"""Perplexity, equal to llama-perplexity's to the decimals that it prints."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.instruction_sets import recorded, same_perplexity, same_running
from helpers.support import EXAMPLES, beginning
from minitron_core.errors import MinitronError, NotFound, Usage
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings, chunk_text, read_text
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.perplexity import negative_log_likelihood, summarize
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import mark_dominated, measure
from minitron_quant.quantize.run import LevelResult

HELD_OUT = EXAMPLES / "held-out.txt"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return beginning(tmp_path_factory.mktemp("text"))


def perplexity(path: Path, text: Path, settings: ChunkSettings = ChunkSettings()) -> Row:
    (row,) = measure(MeasureSettings((path,), text, settings))
    return row


def begins_like(path: Path, text: Path, entry: dict[str, Any]) -> None:
    """The values on the way: of the first decode, of the full model's first two."""
    chunks = 8 if path.stem.endswith("F16") else 4
    same_running(perplexity(path, text, ChunkSettings(limit=chunks)), entry["running"][:chunks])


@pytest.mark.parametrize("level", ["f16", "IQ1_S", "IQ3_XXS", "IQ4_XS", "Q8_0"])
def test_measure_llama_like_llama_perplexity(
    level: str,
    nano_llama: Path,
    llama_levels: dict[str, LevelResult],
    text: Path,
) -> None:
    entry = recorded("perplexity.json")["models"]["nano-llama"]["levels"][level]
    begins_like(nano_llama if level == "f16" else llama_levels[level].path, text, entry)


@pytest.mark.parametrize("level", ["f16", "IQ2_M", "Q6_K"])
def test_measure_nemotron_like_llama_perplexity(
    level: str,
    nano_nemotron: Path,
    nemotron_levels: dict[str, LevelResult],
    text: Path,
) -> None:
    entry = recorded("perplexity.json")["models"]["nano-nemotron"]["levels"][level]
    begins_like(nano_nemotron if level == "f16" else nemotron_levels[level].path, text, entry)


@pytest.mark.harden
@pytest.mark.parametrize("level", ["f16", "IQ2_M", "Q4_K_M"])
def test_the_whole_text_equals_llama_perplexity(
    level: str, nano_llama: Path, llama_levels: dict[str, LevelResult]
) -> None:
    entry = recorded("perplexity.json")["models"]["nano-llama"]["levels"][level]
    path = nano_llama if level == "f16" else llama_levels[level].path
    same_perplexity(perplexity(path, HELD_OUT), entry)


def settings_of(command: str) -> ChunkSettings:
    words = command.split()
    options = dict(zip(words[1::2], words[2::2], strict=False))
    return ChunkSettings(
        n_ctx=int(options.get("-c", 512)),
        n_batch=int(options.get("-b", 2048)),
        limit=int(options["--chunks"]) if "--chunks" in options else None,
    )


@pytest.mark.parametrize(
    ("name", "recordings"),
    [
        # some chunks at once and fewer in the last decode; a chunk in two decodes
        ("nano-llama", ["c256-chunks10", "c512-b1536-chunks7", "c1024-b512-chunks3"]),
        ("nano-nemotron", ["c128-b512-chunks18", "c1024-b512-chunks3"]),
    ],
)
def test_measure_other_contexts_and_batches(
    name: str,
    recordings: list[str],
    nano_llama: Path,
    nano_nemotron: Path,
    text: Path,
) -> None:
    path = nano_llama if name == "nano-llama" else nano_nemotron
    for recording in recordings:
        entry = recorded("perplexity.json")["models"][name]["f16_settings"][recording]
        same_perplexity(perplexity(path, text, settings_of(entry["command"])), entry)


def test_measure_batch_smaller_than_a_chunk(nano_llama: Path, text: Path) -> None:
    whole = perplexity(nano_llama, text, ChunkSettings(n_ctx=512, n_batch=512, limit=2))
    parts = perplexity(nano_llama, text, ChunkSettings(n_ctx=512, n_batch=128, limit=2))
    assert parts.ppl == pytest.approx(whole.ppl, rel=1e-4)


@given(n_ctx=st.integers(2, 4096), batch=st.integers(1, 8192), vocabulary=st.integers(1, 300_000))
def test_chunk_settings_bounded_limits_logits(n_ctx: int, batch: int, vocabulary: int) -> None:
    asked = ChunkSettings(n_ctx=n_ctx, n_batch=batch)
    given = asked.bounded(vocabulary)
    chunk = 4 * vocabulary * (n_ctx - given.first_output)
    assert given.n_seq == 1 or given.n_seq * chunk <= 2**27
    if given != asked:
        assert asked.n_seq > given.n_seq
        assert (given.n_seq + 1) * chunk > 2**27
        assert given.n_batch == given.n_seq * n_ctx


@given(rows=st.integers(1, 70), vocabulary=st.integers(2, 50), seed=st.integers(0, 2**32 - 1))
def test_negative_log_likelihood_equals_log_softmax(rows: int, vocabulary: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (20 * random.standard_normal((rows, vocabulary))).astype(np.float32)
    targets = random.integers(0, vocabulary, rows).astype(np.int32)
    with ThreadPoolExecutor(2) as pool:
        scores = negative_log_likelihood(pool, logits, targets)
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    expected = np.log(np.exp(exact).sum(axis=1)) - exact[np.arange(rows), targets]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_summarize_error_of_the_mean() -> None:
    nll = np.array([1.0, 2.0, 4.0, 5.0])
    ppl, error = summarize(nll)
    assert ppl == pytest.approx(math.exp(3.0))
    assert error == pytest.approx(math.exp(3.0) * math.sqrt((46 / 4 - 9) / 3))
    with pytest.raises(MinitronError, match="finite"):
        summarize(np.array([1.0, np.nan]))


def test_chunk_text_short_or_missing(nano_llama: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("One line.\n")
    with (
        open_model(ModelSettings(nano_llama, vocab_only=True)) as model,
        pytest.raises(Usage, match="two chunks of 512 need 1024"),
    ):
        chunk_text(model, read_text(short), ChunkSettings(), short.name)
    with pytest.raises(NotFound):
        read_text(tmp_path / "none.txt")


def test_read_text_drops_one_newline_and_keeps_bytes(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"a\xff\r\n\n")
    assert read_text(text).encode("utf-8", "surrogateescape") == b"a\xff\r\n"


def single_sequence_nll(model: Model, tokens: Tokens) -> NDArray[np.float64]:
    """−ln p of every token but the first, in float64, from one decode of one sequence."""
    settings = ContextSettings(n_ctx=len(tokens), n_batch=len(tokens))
    with open_context(model, settings) as context:
        batch = Batch(len(tokens))
        fed = tokens.copy()
        fed[0] = model.bos if model.add_bos else fed[0]
        batch.add(fed, 0, 0, np.ones(len(tokens), np.bool_))
        context.decode(batch)
        logits = context.logits(len(tokens))[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(log_p)), tokens[1:]]


@pytest.mark.parametrize(("n_ctx", "stride"), [(64, 16), (48, 20), (32, 31), (32, 1)])
def test_measure_stride_scores_every_token_once(
    n_ctx: int, stride: int, nano_nemotron: Path, text: Path
) -> None:
    windows, settings = 5, ChunkSettings(n_ctx, 3 * n_ctx, limit=5, stride=stride)
    nll = []
    with open_model(ModelSettings(nano_nemotron)) as model:
        tokens = model.tokenize(read_text(text), add_special=True, parse_special=False)
        # token i, from the first one with n_ctx − stride tokens before it, in its own window
        for token in range(n_ctx - stride, n_ctx - stride + windows * stride, stride):
            start = token - (n_ctx - stride)
            window = single_sequence_nll(model, tokens[start : start + n_ctx])
            nll += list(window[-stride:])
    row = perplexity(nano_nemotron, text, settings)
    ppl, error = summarize(np.array(nll))
    assert row.chunks == windows and len(nll) == windows * stride
    assert row.ppl == pytest.approx(ppl, rel=1e-5)
    assert row.ppl_error == pytest.approx(error, rel=1e-4)


def test_measure_stride_of_half_a_chunk_is_close_to_none(nano_nemotron: Path, text: Path) -> None:
    strided = perplexity(nano_nemotron, text, ChunkSettings(128, limit=15, stride=64))
    plain = perplexity(nano_nemotron, text, ChunkSettings(128, limit=8))
    # every second window is a chunk; it scores one token more
    assert np.mean(strided.chunk_nll[::2]) == pytest.approx(np.mean(plain.chunk_nll), rel=0.05)
    assert strided.ppl_error < plain.ppl_error


@pytest.mark.parametrize("stride", [64, 65, 0, -1])
def test_measure_refuses_stride_without_context(
    stride: int, nano_nemotron: Path, text: Path
) -> None:
    with pytest.raises(Usage, match="a stride is from 1 to 63"):
        perplexity(nano_nemotron, text, ChunkSettings(64, stride=stride))


def test_measure_refuses_untrained_context(nano_nemotron: Path) -> None:
    with pytest.raises(Usage, match="trained on 4096 tokens of context; chunks of 4097") as caught:
        perplexity(nano_nemotron, HELD_OUT, ChunkSettings(4097))
    assert "--ctx 4096" in caught.value.hint


def scored(name: str, size: float, nll: list[float], kld: list[float] | None = None) -> Row:
    """A row with these means of chunks."""
    sizes = {"size_mib": size, "size_pct": None, "accuracy_pct": None}
    ppl = float(np.exp(np.mean(nll)))
    measured = {"ppl": ppl, "ppl_error": 0.1, "chunks": len(nll), "device": "CPU"}
    return Row(name, "Q4_0", **sizes, **measured, chunk_nll=tuple(nll), chunk_kld=tuple(kld or ()))


def dominated(*rows: Row) -> dict[str, str | None]:
    return {row.model: row.dominated_by for row in mark_dominated(rows)}


BASE = [3.0, 3.5, 2.5, 4.0, 3.2, 2.8]


def test_mark_dominated_needs_an_interval_that_excludes_chance() -> None:
    clear = [each + 0.1 for each in BASE]
    mixed = [
        each + change for each, change in zip(BASE, (0.3, -0.2, 0.2, -0.2, 0.1, 0.1), strict=True)
    ]
    small = scored("small", 1, BASE)
    assert dominated(small, scored("clear", 2, clear), scored("mixed", 3, mixed)) == {
        "small": None,
        "clear": "small",
        "mixed": None,
    }


def test_mark_dominated_by_no_larger_files_only() -> None:
    worse = [each + 0.1 for each in BASE]
    assert dominated(scored("large", 2, BASE), scored("small", 1, worse))["small"] is None
    assert dominated(scored("one", 1, BASE), scored("other", 1, worse))["other"] == "one"


def test_mark_dominated_asks_the_divergence_too() -> None:
    worse = [each + 0.1 for each in BASE]
    far, near = [0.5] * 6, [0.1] * 6
    assert dominated(scored("a", 1, BASE, far), scored("b", 2, worse, near))["b"] is None
    assert dominated(scored("a", 1, BASE, near), scored("b", 2, worse, far))["b"] == "a"


def test_mark_dominated_parts_files_of_one_name() -> None:
    worse = [each + 0.1 for each in BASE]
    rows = mark_dominated([scored("m", 1, BASE), scored("m", 2, worse)])
    assert [row.dominated_by for row in rows] == [None, "m"]


def test_mark_dominated_says_nothing_of_one_chunk_or_the_full_model() -> None:
    assert dominated(scored("a", 1, [3.0]), scored("b", 2, [4.0]))["b"] is None
    full = replace(scored("full", 2, [each + 0.1 for each in BASE]), level="F16")
    assert dominated(scored("a", 1, BASE), full)["full"] is None


def test_measure_relates_rows_to_reference(
    nano_llama: Path, llama_levels: dict[str, LevelResult], text: Path
) -> None:
    paths = (llama_levels["Q8_0"].path, llama_levels["IQ1_S"].path)
    settings = MeasureSettings(paths, text, ChunkSettings(n_ctx=128, limit=4), reference=nano_llama)
    rows = list(measure(settings))
    assert [row.level for row in rows] == ["F16", "Q8_0", "IQ1_S"]
    assert rows[0].accuracy_pct == rows[0].size_pct == 100
    assert rows[2].accuracy_pct == pytest.approx(100 * rows[0].ppl / rows[2].ppl)
    alone = next(iter(measure(MeasureSettings(paths, text, settings.chunks))))
    assert alone.accuracy_pct is None and alone.size_pct is None
