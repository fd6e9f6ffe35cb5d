"""Checks of model files before llama.cpp reads them."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_core.errors import Damaged, NotFound, Unsupported
from minitron_core.gguf import GgufWriter, KeyValue, ValueType
from minitron_quant.model_files import (
    models_in,
    open_model_files,
    other_content,
    published_in,
)

# jais2 is what the wide Nemotron models become, Minitron-8B among them
ARCHITECTURES = ("llama", "nemotron", "jais2", "an-architecture-to-come")
SOUND = {
    "block_count": 2,
    "embedding_length": 64,
    "attention.head_count": 4,
    "rope.dimension_count": 16,
}


def write_model(path: Path, architecture: str, **changes: Any) -> Path:
    """A file of metadata only; keys have __ for their dots, and None removes one."""
    numbers = SOUND | {key.replace("__", "."): value for key, value in changes.items()}
    keys = [KeyValue.of("general.architecture", ValueType.STRING, architecture)]
    for key, value in numbers.items():
        if isinstance(value, list):
            keys.append(
                KeyValue.of(f"{architecture}.{key}", ValueType.ARRAY, value, ValueType.UINT32)
            )
        elif value is not None:
            number_type = ValueType.FLOAT32 if isinstance(value, float) else ValueType.UINT32
            keys.append(KeyValue.of(f"{architecture}.{key}", number_type, value))
    with GgufWriter(path, keys, []):
        pass
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": 0}, "block_count is 0"),
        ({"block_count": 513}, "block_count is 513"),
        ({"block_count": 2.5}, "block_count is 2.5"),
        ({"rope__dimension_count": 7}, "rope.dimension_count 7 does not fit a head of 16"),
        ({"rope__dimension_count": 18}, "rope.dimension_count 18 does not fit a head of 16"),
        ({"rope__dimension_count": 0}, "rope.dimension_count 0 does not fit"),
        ({"attention__key_length": 8}, "rope.dimension_count 16 does not fit a head of 8"),
        ({"attention__layer_norm_epsilon": -1.0}, "layer_norm_epsilon is -1.0"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon is NaN"),
        ({"attention__layer_norm_rms_epsilon": float("inf")}, "layer_norm_rms_epsilon is Infinity"),
    ],
)
def test_open_model_files_refuses_numbers_that_abort_llama_cpp(
    architecture: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "model.gguf", architecture, **changes)
    with pytest.raises(Damaged, match=message):
        open_model_files(path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block_count": None},  # llama.cpp refuses it
        {"rope__dimension_count": None},
        {"rope__dimension_count": 64, "attention__key_length": 128},
        {"attention__head_count": [4, 8]},  # heads that differ by layer
        {"attention__head_count": 0},  # no attention
        {"attention__layer_norm_epsilon": 0.0},
    ],
)
def test_open_model_files_accepts_what_llama_cpp_accepts_or_refuses_itself(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    (file,) = open_model_files(write_model(tmp_path / "model.gguf", "any", **changes))
    assert file.get("general.architecture") == "any"


@given(rotated=st.integers(0, 2**32 - 1), size=st.integers(1, 2**20))
def test_open_model_files_lets_rotations_pass_that_fit(
    rotated: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "rotated.gguf"
    write_model(path, "any", rope__dimension_count=rotated, attention__key_length=size)
    if 0 < rotated <= size and rotated % 2 == 0:
        open_model_files(path)
    else:
        with pytest.raises(Damaged):
            open_model_files(path)


def test_models_in_leaves_out_importance_matrices_and_later_shards(tmp_path: Path) -> None:
    with GgufWriter(
        tmp_path / "a.gguf", [KeyValue.of("general.type", ValueType.STRING, "imatrix")], []
    ):
        pass
    with pytest.raises(NotFound, match="there is no model in"):
        models_in(tmp_path)
    for name in ("c.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf"):
        write_model(tmp_path / name, "llama")
    assert [path.name for path in models_in(tmp_path)] == ["b-00001-of-00002.gguf", "c.gguf"]
    assert "matrix" in other_content(tmp_path / "a.gguf")
    assert not other_content(tmp_path / "c.gguf")
    with pytest.raises(Unsupported, match="an importance matrix, not a model"):
        open_model_files(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("key", "value", "content"),
    [
        ("general.type", "mmproj", "projector"),
        ("general.type", "adapter", "LoRA"),
        ("general.type", "covariance", "covariance"),
        ("general.type", "output-hessian", "Hessian"),
        ("general.architecture", "clip", "projector"),
    ],
)
def test_models_in_leaves_out_what_is_no_model(
    tmp_path: Path, key: str, value: str, content: str
) -> None:
    other = tmp_path / "other.gguf"
    with GgufWriter(other, [KeyValue.of(key, ValueType.STRING, value)], []):
        pass
    write_model(tmp_path / "model.gguf", "llama")
    assert [path.name for path in models_in(tmp_path)] == ["model.gguf"]
    with pytest.raises(Unsupported, match=content):
        open_model_files(other)
    # what only GPTQ reads is not for others
    own = value in ("covariance", "output-hessian")
    assert [path.name for path in published_in(tmp_path)] == ["model.gguf", "other.gguf"][: 2 - own]
