"""Layer streaming: layers that run one by one compute what the whole model computes."""

from pathlib import Path

import numpy as np
import pytest

from helpers.support import with_entry
from helpers.tiny_checkpoints import make_checkpoint
from helpers.tiny_gguf import write_tiny
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import MinitronError
from minitron_core.gguf import ValueType
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.array_backend import Floats
from minitron_quant.blocks import decode_blocks
from minitron_quant.model_files import EMBEDDING, OUTPUT, open_model_files, tensors_of
from minitron_quant.streaming.layer_file import (
    STREAMED,
    layer_count,
    layer_tensors,
    reason_not_streamed,
)
from minitron_quant.streaming.layer_model import AFTER_ATTENTION, AFTER_LAYER, open_layer

TOKENS = np.random.default_rng(0).integers(0, 200, 48).astype(np.int32)
DOWN = "blk.0.ffn_down.weight"
# the checkpoint of each architecture
CHECKPOINTS = {"exaone": "exaone3"}


def tensor(path: Path, name: str) -> Floats:
    shard, info = tensors_of(open_model_files(path))[name]
    shape = (info.rows, info.shape[0]) if len(info.shape) > 1 else info.shape
    return decode_blocks(info.type, shard.data(info), shape)


def whole_logits(path: Path) -> Floats:
    settings = ContextSettings(n_ctx=len(TOKENS), n_batch=len(TOKENS), threads=1)
    with open_model(ModelSettings(path)) as model, open_context(model, settings) as context:
        batch = Batch(len(TOKENS))
        batch.add(TOKENS, 0, 0, np.ones(len(TOKENS), np.bool_))
        context.decode(batch)
        return context.logits(len(TOKENS)).copy()


def chained(path: Path, folder: Path, *, decoded: bool = False) -> tuple[Floats, list[Floats]]:
    """The last product's input, and of each layer what its last product does not explain."""
    shards = open_model_files(path)
    tensors = tensors_of(shards)
    states, left = tensor(path, EMBEDDING)[TOKENS], []
    file = folder / "layer.gguf"
    with open_layer(shards, ModelSettings(file), len(TOKENS), 1, decoded=decoded) as layer:
        assert not file.exists()
        outside = {
            name: found
            for name, found in tensors.items()
            if not name.startswith("blk.") and name not in (EMBEDDING, OUTPUT)
        }
        for number in range(layer_count(shards)):
            for name, (shard, info) in {**outside, **layer_tensors(tensors, number)}.items():
                data = np.ascontiguousarray(shard.data(info))
                values = decode_blocks(info.type, data, (info.n_elements,)).view(np.uint8)
                layer.put(name, values if decoded else data)
            found = layer.run(states, (AFTER_ATTENTION, DOWN, AFTER_LAYER, layer.output))
            states = found[AFTER_LAYER]
            down = tensor(path, f"blk.{number}.ffn_down.weight")
            left.append(states - found[AFTER_ATTENTION] - found[DOWN] @ down.T)
        return found[layer.output], left


@pytest.mark.parametrize("architecture", sorted(STREAMED))
def test_layers_one_by_one_give_the_logits_of_the_whole_model(
    architecture: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    source = make_checkpoint(CHECKPOINTS.get(architecture, architecture), tmp_path)
    # F32, so that numpy computes the same products
    convert(ConvertSettings(source, path, outtype="f32"))
    assert reason_not_streamed(open_model_files(path)) == ""
    before, left = chained(path, tmp_path)
    names = tensors_of(open_model_files(path))
    logits = before @ tensor(path, OUTPUT if OUTPUT in names else EMBEDDING).T
    expected = whole_logits(path)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    # what repairs the residual stream rests on this: the layer adds its last product to it
    for rest in left:
        constant = rest.mean(0)  # a bias
        assert np.abs(rest - constant).max() < 1e-4 * np.abs(before).max()


def test_a_layer_of_halves_and_its_decoded_copy_agree(tmp_path: Path) -> None:
    source = make_checkpoint("llama", tmp_path)
    path = tmp_path / "model.gguf"
    convert(ConvertSettings(source, path, outtype="f16"))
    halves, _ = chained(path, tmp_path)
    decoded, _ = chained(path, tmp_path, decoded=True)
    assert 0 < np.abs(halves - decoded).max() < 1e-3 * np.abs(halves).max()


@pytest.mark.parametrize("name", ["cohere2", "granite", "smollm3"])
def test_reason_not_streamed_names_other_architectures(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    convert(ConvertSettings(make_checkpoint(name, tmp_path), path, outtype="f16"))
    assert name in reason_not_streamed(open_model_files(path))


def test_reason_not_streamed_names_experts_and_scales(tmp_path: Path) -> None:
    experts = write_tiny(tmp_path / "experts.gguf", experts=4)
    assert "expert_count" in reason_not_streamed(open_model_files(experts))
    plain = write_tiny(tmp_path / "plain.gguf")
    assert reason_not_streamed(open_model_files(plain)) == ""
    scaled = with_entry(
        plain, tmp_path / "scaled.gguf", "llama.residual_scale", ValueType.FLOAT32, 0.5
    )
    assert "residual_scale" in reason_not_streamed(open_model_files(scaled))


def test_layer_run_refuses_what_the_graph_lacks_and_values_that_are_not_finite(
    tmp_path: Path,
) -> None:
    shards = open_model_files(write_tiny(tmp_path / "tiny.gguf"))
    file = ModelSettings(tmp_path / "layer.gguf")
    with open_layer(shards, file, 32, 1, decoded=True) as layer:
        states = np.ones((32, layer.width), np.float32)
        with pytest.raises(MinitronError, match="no ffn_nothing-0"):
            layer.run(states, ["ffn_nothing-0"])
        layer.put("blk.0.attn_norm.weight", np.full(layer.width, np.inf, np.float32).view(np.uint8))
        with pytest.raises(MinitronError, match="not finite"):
            layer.run(states, ["blk.0.attn_q.weight"])


def test_layer_run_reads_an_input_at_its_product_and_then_where_it_is_made(tmp_path: Path) -> None:
    shards = open_model_files(write_tiny(tmp_path / "tiny.gguf"))
    names = ["blk.0.attn_q.weight", "blk.0.attn_output.weight", "blk.0.ffn_gate.weight", DOWN]
    with open_layer(shards, tmp_path / "layer.gguf", 32, 1, decoded=True) as layer:
        for name, (shard, info) in layer_tensors(tensors_of(shards), 0).items():
            values = decode_blocks(info.type, shard.data(info), (info.n_elements,))
            layer.put(name, values.view(np.uint8))
        states = np.random.default_rng(0).standard_normal((32, layer.width)).astype(np.float32)
        at_product = {name: layer.run(states, [name])[name] for name in names}
        for name in names:
            np.testing.assert_array_equal(layer.run(states, [name])[name], at_product[name])
        together = layer.run(states, [*names, AFTER_LAYER])
        for name in names:
            np.testing.assert_array_equal(together[name], at_product[name])
