"""Converted models, run by llama.cpp, compute the logits of a float64 reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import numpy_model
from helpers.raw_llama import llama_logits
from minitron_convert.architectures.wide_nemotron import head_places, widen
from minitron_convert.checkpoint.folder import open_checkpoint
from minitron_convert.convert import ConvertSettings, convert
from minitron_convert.encode import to_float
from minitron_core.gguf import open_gguf

N_TOKENS = 256


def error_of(folder: Path, out: Path) -> float:
    """The largest difference of logits, relative to the largest logit."""
    checkpoint = open_checkpoint(folder)
    weights = {
        name: to_float(tensor.read(), tensor.dtype).astype(np.float64)
        for name, tensor in checkpoint.tensors.items()
    }
    tokens = np.random.default_rng(5).integers(300, 4000, N_TOKENS).tolist()
    wanted = numpy_model.logits(checkpoint.config, weights, tokens)
    path = convert(ConvertSettings(folder, out, "f32", force=True)).paths[0]
    found = llama_logits(path, tokens)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("model", ["nano-llama", "nano-nemotron"])
def test_bundled_models_compute_the_reference_logits(
    model: str, examples: Path, tmp_path: Path
) -> None:
    assert error_of(examples / model, tmp_path) < 1e-4


@pytest.mark.parametrize(
    "variant",
    [
        "llama-tied",
        "llama-bias",
        "llama-linear",
        "llama-wide-heads",
        "mistral",
        "nemotron-bias",
        "nemotron-linear",
        "nemotron-wide",
        "nemotron-wide-bias",
        "nemotron-narrow",
        "nemotron-tied",
    ],
)
def test_architectures_compute_the_reference_logits(
    variant: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint(variant)
    config = json.loads((folder / "config.json").read_text())
    # Weights of deviation 0.1 give scores large enough for positions to matter.
    assert config["hidden_size"] < 200
    assert error_of(folder, tmp_path) < 1e-4


def test_wide_nemotron_says_what_it_did(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    result = convert(ConvertSettings(checkpoint("nemotron-wide"), tmp_path))
    assert result.architecture == "jais2"
    (note,) = result.notes
    assert "6 heads of 32 on hidden_size 128" in note
    assert open_gguf(result.paths[0]).get("minitron.conversion") == note


def test_widen_adds_little_to_minitron_8b(shared: Path) -> None:
    config = json.loads(
        (shared / "nvidia-configs" / "Minitron-8B-Base" / "config.json").read_text()
    )
    head = widen(config["head_dim"], 64, config["rope_theta"])
    assert head.size == 160
    added = (head.size - 128) * config["hidden_size"] * (2 * 48 + 2 * 8) * 32
    assert added / 8_271_699_968 < 0.06


@pytest.mark.parametrize("sizes", [(128, 64, 1e4), (64, 32, 1e4), (128, 32, 1e6), (96, 48, 5e5)])
def test_widen_puts_zeros_where_yarn_blends(sizes: tuple[int, int, float]) -> None:
    head_dim, rotary, theta = sizes
    head = widen(*sizes)

    def corner(beta: float) -> float:
        """ggml_rope_yarn_corr_dim in float32."""
        f = np.float32
        rounds = np.log(f(head.original_context) / (f(beta) * f(2) * f(np.pi)))
        return float(f(head.size) * rounds / (f(2) * np.log(f(head.base))))

    low, high = np.floor(corner(32)), np.ceil(corner(1))
    places = head_places(head.size, head.turned, head.still)
    pairs = set((places % (head.size // 2)).tolist())
    assert set(range(rotary // 2)) == {pair for pair in pairs if pair <= low}
    assert len({pair for pair in pairs if pair >= high}) == (head_dim - rotary) // 2
    assert not {pair for pair in pairs if low < pair < high}
    assert len(set(places.tolist())) == head_dim
    kept = head.base ** (-np.arange(rotary // 2) / (head.size // 2))
    assert np.allclose(kept, theta ** (-np.arange(rotary // 2) / (rotary // 2)))


def changed(folder: Path, **changes: Any) -> None:
    """Change keys of the config."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_wide_nemotron_refuses_what_yarn_cannot_express(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from minitron_core.errors import Unsupported

    folder = checkpoint("nemotron-wide")
    changed(folder, rope_theta=1e12)
    with pytest.raises(Unsupported, match="cannot be expressed"):
        convert(ConvertSettings(folder, tmp_path))
