"""The records as a whole: the documentation made from them, and their defaults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.support import ROOT
from helpers.tiny_checkpoints import NAMES, description
from minitron_convert.architectures import ARCHITECTURES
from minitron_convert.families import families_markdown

# The config classes of transformers 4.57.6, constructed without arguments.
DEFAULTS: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "tests" / "data" / "convert" / "transformers-4.57.6-defaults.json").read_text()
)
KNOWN = [name for name in NAMES if description(name)["config"]["model_type"] in DEFAULTS]
# What a config without it would get from its class, and a key of the file with it.
EXPECTED = ("max_position_embeddings", "rope_theta", "rms_norm_eps", "layer_norm_eps")
# Variants of a family that is covered, and one that test_convert.py compares.
OTHERS = {"GraniteMoeSharedForCausalLM", "MistralForCausalLM"}


def test_families_markdown_is_the_page_of_the_documentation() -> None:
    assert (ROOT / "docs" / "families.md").read_text() == families_markdown()


def test_architectures_name_models_and_have_a_tiny_checkpoint() -> None:
    covered = {description(name)["config"]["architectures"][0] for name in NAMES}
    for name, architecture in ARCHITECTURES.items():
        assert architecture.models, name
        assert all(hub.count("/") == 1 for hub in architecture.hub.split(", ")), name
        same = [other for other, record in ARCHITECTURES.items() if record is architecture]
        assert covered & set(same) or name in OTHERS, name


@pytest.mark.parametrize("name", KNOWN)
def test_architectures_have_the_defaults_of_transformers(name: str) -> None:
    config = description(name)["config"]
    theirs = DEFAULTS[config["model_type"]]
    ours = ARCHITECTURES[config["architectures"][0]].defaults
    assert {key: ours[key] for key in ours if key in theirs} == {
        key: theirs[key] for key in ours if key in theirs
    }
    assert {key for key in EXPECTED if key in theirs} <= set(ours)
