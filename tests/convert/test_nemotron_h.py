"""Nemotron-H in the forms in which configs describe it, and where llama.cpp's converter fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.raw_llama import llama_logits
from helpers.tiny_checkpoints import make_checkpoint, source_tensors
from minitron_convert.convert import ConvertSettings, convert
from minitron_convert.verify import verify
from minitron_core.errors import Damaged, Unsupported
from minitron_core.gguf import Gguf, GgufWriter, TensorSpec, open_gguf

DENSE, MIXED = "nemotron-h-8b", "nemotron-3-super-120b"
WORDS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


def converted(folder: Path, out: Path) -> Gguf:
    """A converted checkpoint, opened."""
    return open_gguf(convert(ConvertSettings(folder, out, name="tiny", force=True)).paths[0])


def contents(model: Gguf) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Keys and tensors by name."""
    keys = {key: entry.raw for key, entry in model.metadata.items()}
    return keys, {info.name: model.data(info).tobytes() for info in model.tensors}


@pytest.mark.parametrize(("name", "kinds"), [(DENSE, "M-M*M-"), (MIXED, "MEM*ME")])
def test_nemotron_h_reads_a_list_of_layers_as_the_pattern(
    name: str, kinds: str, tmp_path: Path
) -> None:
    by_pattern = converted(make_checkpoint(name, tmp_path / "pattern"), tmp_path / "a.gguf")
    listed = {
        "hybrid_override_pattern": None,
        "num_hidden_layers": None,
        "layers_block_type": [WORDS[kind] for kind in kinds],
    }
    by_list = converted(make_checkpoint(name, tmp_path / "list", listed), tmp_path / "b.gguf")
    assert by_list.path.read_bytes() == by_pattern.path.read_bytes()


def test_nemotron_h_reads_the_names_of_transformers_5(tmp_path: Path) -> None:
    shapes = source_tensors(DENSE)
    # weights depend on the name: only names and shapes can be compared
    renamed = {name.replace("backbone.", "model."): told for name, told in shapes.items()}
    old = converted(make_checkpoint(DENSE, tmp_path / "old"), tmp_path / "a.gguf")
    new = converted(make_checkpoint(DENSE, tmp_path / "new", shapes=renamed), tmp_path / "b.gguf")
    assert {(t.name, t.shape, t.type) for t in old.tensors} == {
        (t.name, t.shape, t.type) for t in new.tensors
    }


def test_nemotron_h_stays_dense_beside_numbers_of_experts(tmp_path: Path) -> None:
    plain = converted(make_checkpoint(DENSE, tmp_path / "plain"), tmp_path / "a.gguf")
    more = {"num_experts_per_tok": 2, "n_routed_experts": 8, "moe_intermediate_size": 64}
    told = converted(make_checkpoint(DENSE, tmp_path / "told", more), tmp_path / "b.gguf")
    assert contents(told) == contents(plain)
    assert told.get("general.architecture") == "nemotron_h"


def test_nemotron_h_fills_in_the_layer_norm_epsilon(tmp_path: Path) -> None:
    folder = make_checkpoint(DENSE, tmp_path, {"layer_norm_epsilon": None})
    model = converted(folder, tmp_path / "m.gguf")
    keys = [f"nemotron_h.attention.layer_norm_{kind}epsilon" for kind in ("", "rms_")]
    assert model.get(keys[0]) == model.get(keys[1])
    assert np.isfinite(llama_logits(model.path, [5, 6, 7, 8])).all()


def test_nemotron_h_leaves_out_a_next_token_layer_that_is_not_there(
    tmp_path: Path,
) -> None:
    kept = {
        name: told for name, told in source_tensors(MIXED).items() if not name.startswith("mtp.")
    }
    model = converted(make_checkpoint(MIXED, tmp_path, shapes=kept), tmp_path / "m.gguf")
    assert model.get("nemotron_h_moe.block_count") == 6
    assert model.get("nemotron_h_moe.nextn_predict_layers") is None
    assert np.isfinite(llama_logits(model.path, [5, 6, 7, 8])).all()


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"hybrid_override_pattern": None}, Damaged, "kinds of its layers"),
        ({"hybrid_override_pattern": "M-M*MX"}, Damaged, "kinds of its layers"),
        ({"mlp_hidden_act": "silu"}, Unsupported, "silu"),
        ({"n_groups": 3}, Damaged, "does not fit"),
        ({"mamba_num_heads": 0}, Damaged, "mamba_num_heads"),
    ],
)
def test_nemotron_h_refuses_a_config_that_does_not_fit(
    config: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        converted(make_checkpoint(DENSE, tmp_path, config), tmp_path / "m.gguf")


def test_expert_stacks_name_the_layer_of_a_lost_expert(tmp_path: Path) -> None:
    lost = "backbone.layers.1.mixer.experts.2.up_proj.weight"
    kept = {name: told for name, told in source_tensors(MIXED).items() if name != lost}
    with pytest.raises(Damaged, match=r"backbone\.layers\.1 has not all"):
        converted(make_checkpoint(MIXED, tmp_path, shapes=kept), tmp_path / "m.gguf")


@pytest.mark.parametrize(("steps", "passes"), [(1, True), (3, False)])
def test_verify_allows_one_unit_in_what_exp_computed(
    steps: int, passes: bool, tmp_path: Path
) -> None:
    folder = make_checkpoint(DENSE, tmp_path)
    settings = ConvertSettings(folder, tmp_path)
    source = open_gguf(convert(settings).paths[0])
    path = tmp_path / "moved.gguf"
    specs = [TensorSpec(info.name, info.shape, info.type) for info in source.tensors]
    with GgufWriter(path, list(source.metadata.values()), specs) as writer:
        for info in source.tensors:
            data = source.data(info).copy()
            if info.name == "blk.0.ssm_a":
                data.view(np.uint32)[0] += steps
            writer.write(data)
    values = {check.name: check for check in verify(settings, path).checks}["values"]
    assert values.passed is passes
    assert "ssm_a" in values.detail
