"""Which layer a tensor belongs to, and how many bytes a layer has."""

import pytest

from minitron_core.gguf import in_layer, layer_bytes, layer_number


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("blk.0.attn_q.weight", 0),
        ("blk.31.ffn_up.bias", 31),
        ("token_embd.weight", None),
        ("blk.x.attn_q.weight", None),
        ("a.blk.1.weight", None),
    ],
)
def test_layer_number_of_a_tensor(name: str, number: int | None) -> None:
    assert layer_number(name) == number


def test_in_layer_renames_the_layer_only() -> None:
    assert in_layer("blk.7.blk.7.weight", 3) == "blk.3.blk.7.weight"
    assert in_layer("blk.7.attn_q.weight", "*") == "blk.*.attn_q.weight"
    assert in_layer("output.weight", 3) == "output.weight"


def test_layer_bytes_end_with_the_output() -> None:
    tensors = [
        ("token_embd.weight", 100),
        ("blk.1.b", 7),
        ("blk.0.a", 5),
        ("blk.0.b", 6),
        ("output_norm.weight", 2),
    ]
    # a tied embedding is the output too; another one stays on the CPU
    assert layer_bytes(tensors) == [11, 7, 102]
    assert layer_bytes([*tensors, ("output.weight", 50)]) == [11, 7, 52]
