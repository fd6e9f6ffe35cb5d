"""Synthetic calibration texts."""

from pathlib import Path

import numpy as np
import pytest

from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings, chunk_text, read_text
from minitron_quant.imatrix.synthetic_text import SyntheticTextSettings, draw, write_synthetic_text


def test_draw_follows_the_probabilities() -> None:
    probabilities = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities).astype(np.float32) + 7
    random = np.random.default_rng(3)
    drawn = [draw(logits, random) for _ in range(20000)]
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    assert shares[1] == 0
    np.testing.assert_allclose(shares, probabilities, atol=0.015)


@pytest.mark.parametrize("name", ["nano_llama", "nano_nemotron"])
def test_write_synthetic_text_depends_on_the_seed_only(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "other.txt"]
    with open_model(ModelSettings(request.getfixturevalue(name))) as model:
        for path, seed in zip(paths, (1, 1, 2), strict=True):
            settings = SyntheticTextSettings(tokens=300, n_ctx=32, seed=seed, threads=1)
            write_synthetic_text(model, settings, path)
        chunks = chunk_text(model, read_text(paths[0]), ChunkSettings(n_ctx=32), "a.txt")
    texts = [path.read_bytes() for path in paths]
    assert texts[0] == texts[1] != texts[2]
    # ten sequences side by side; a text is not always split into the tokens it was made of
    assert texts[0].count(b"\n") >= 10
    assert 200 < chunks.size < 400


def test_chunk_text_parses_special_tokens_only_on_request(nano_llama: Path) -> None:
    with open_model(ModelSettings(nano_llama)) as model:
        text = model.piece(model.bos, special=True).decode() * 600
        plain, parsed = (
            chunk_text(model, text, ChunkSettings(n_ctx=64, parse_special=special), "t")
            for special in (False, True)
        )
    assert (parsed == model.bos).all() and len(parsed) == 601 // 64
    assert len(plain) > len(parsed)
