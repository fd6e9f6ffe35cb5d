"""The full model and a level side by side: what is kept of a layer, and the states after it."""

from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_checkpoints import make_checkpoint
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import Damaged, OutOfResources
from minitron_engine.llama.settings import ModelSettings
from minitron_quant.blocks import decode_blocks
from minitron_quant.gptq.drift import DriftSettings
from minitron_quant.gptq.sequential_store import FULL, SequentialStore, TokenValues
from minitron_quant.gptq.side_by_side import open_side_by_side
from minitron_quant.gptq.stages import stages_of
from minitron_quant.model_files import EMBEDDING, open_model_files, tensors_of
from minitron_quant.streaming.layer_file import layer_tensors

N_CTX = 32
TOKENS = np.random.default_rng(0).integers(0, 200, 2 * N_CTX)


# starcoder2 has biases, nemotron norms that subtract the mean
@pytest.mark.parametrize("architecture", ["llama", "nemotron", "starcoder2"])
def test_level_with_the_full_models_matrices_has_its_states(
    architecture: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    convert(ConvertSettings(make_checkpoint(architecture, tmp_path), path, outtype="f32"))
    shards = open_model_files(path)
    tensors = tensors_of(shards)
    shard, info = tensors[EMBEDDING]
    embedding = decode_blocks(info.type, shard.data(info), (info.rows, info.shape[0]))
    store = SequentialStore(tmp_path / "work", "x", (len(TOKENS), info.shape[0]), ["same"])
    store.begin(0)
    for side in (FULL, "same"):
        with store.new_states(side, 0) as states:
            states[:] = embedding[TOKENS]
    loading, drift = ModelSettings(path), DriftSettings()
    stages = stages_of(layer_tensors(tensors, 0))
    with open_side_by_side(loading, shards, drift, store, N_CTX, threads=2) as models:
        models.load(0, stages)
        for stage in stages:
            sums = models.measure(stage)["same"]
            # no drift: nothing to repair, and the input is that of the full model
            assert sums.tokens == len(TOKENS)
            size = np.abs(sums.metric()).max()
            for name in stage.weights:
                source, matrix = layer_tensors(tensors, 0)[name]
                shape = (matrix.rows, matrix.shape[0])
                values = decode_blocks(matrix.type, source.data(matrix), shape)
                models.put("same", name, values)
                assert np.abs(sums.wanted(values, slice(None), models.pool)).max() < 1e-4 * size
        models.finish(stages[-1])
        ours, theirs = store.states("same", 1), store.states(FULL, 1)
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
        assert not np.allclose(ours, store.states(FULL, 0))
    # what was kept of the layer has no name
    assert {file.suffix for file in store.folder.iterdir()} == {".states"}


def test_token_values_are_read_as_they_were_written(tmp_path: Path) -> None:
    values = TokenValues(tmp_path, 10, 3)
    assert not [*tmp_path.iterdir()]
    written = np.arange(30, dtype=np.float64).reshape(10, 3)
    values.write(slice(4, 10), written[4:])
    values.write(slice(0, 4), written[:4])
    np.testing.assert_array_equal(values.read(slice(2, 7)), written[2:7])
    with pytest.raises(Damaged, match="was changed"):
        values.read(slice(8, 12))
    values.close()


def test_token_values_refuse_a_disk_without_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OutOfResources):
        TokenValues(tmp_path, 10, 3)
