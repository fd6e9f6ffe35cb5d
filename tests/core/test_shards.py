"""The names of a model's shards."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_core.gguf import ShardName, model_stem, parse_shard_name, shard_paths

NUMBERS = st.integers(1, 99999)
STEMS = st.text(st.characters(exclude_characters="\n/\0", exclude_categories=["Cs"]), min_size=1)


@given(stem=STEMS, number=NUMBERS, total=NUMBERS)
def test_parse_shard_name_round_trips(stem: str, number: int, total: int) -> None:
    name = ShardName(stem, number, total)
    assert parse_shard_name(str(name)) == name


@given(stem=STEMS, total=st.integers(1, 12))
def test_shard_name_all_counts_from_one(stem: str, total: int) -> None:
    parsed = [parse_shard_name(name) for name in ShardName(stem, 1, total).all()]
    assert parsed == [ShardName(stem, number, total) for number in range(1, total + 1)]


@pytest.mark.parametrize(
    "name",
    [
        "m.gguf",
        "m-1-of-2.gguf",
        "m-00001-of-00002.bin",
        "-00001-of-00002.gguf",
        "m-00001-of-2.gguf",
    ],
)
def test_parse_shard_name_gives_none_for_other_names(name: str) -> None:
    assert parse_shard_name(name) is None


def test_shard_paths_are_all_files_of_the_model() -> None:
    folder = Path("models")
    expected = [folder / "m-00001-of-00002.gguf", folder / "m-00002-of-00002.gguf"]
    assert shard_paths(expected[1]) == shard_paths(expected[0]) == expected
    assert shard_paths(folder / "m.gguf") == [folder / "m.gguf"]


def test_model_stem_has_neither_shard_nor_ending() -> None:
    assert model_stem(Path("a/m-Q4_K_M-00002-of-00003.gguf")) == "m-Q4_K_M"
    assert model_stem(Path("a/m-Q4_K_M.gguf")) == "m-Q4_K_M"
