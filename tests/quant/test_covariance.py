"""Input covariance: sums, files, and resumed runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.support import EXAMPLES
from minitron_core.errors import Damaged, MinitronError, NotFound, OutOfResources, Usage
from minitron_core.gguf import F32, GgufWriter, KeyValue, TensorSpec, ValueType, open_gguf
from minitron_core.progress import Event, ignore
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings
from minitron_quant.covariance.collect import (
    BLOCK,
    FULL,
    CovarianceSettings,
    _passes,
    collect_covariance,
)
from minitron_quant.covariance.files import PARTS, Covariance, open_covariance
from minitron_quant.covariance.gram import GramSums, block_edges
from minitron_quant.covariance.input_hook import ModelInputs
from minitron_quant.imatrix.collect import CollectSettings, collect

TEXT = EXAMPLES / "calibration.txt"
CHUNKS = ChunkSettings(n_ctx=64, n_batch=128, limit=4, threads=1)


def settings(**more: object) -> CovarianceSettings:
    given = {"chunks": CHUNKS, "block": 256, **more}
    return CovarianceSettings((TEXT,), **given)  # type: ignore[arg-type]


def collected(source: Path, path: Path, progress: object = ignore, **more: object) -> Covariance:
    with open_model(ModelSettings(source, n_ctx=128)) as model:
        return collect_covariance(model, settings(**more), path, progress)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def blocks(short_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Covariance:
    return collected(short_llama, tmp_path_factory.mktemp("covariance") / "blocks.gguf")


def test_covariance_diagonal_is_the_importance_matrix(
    short_llama: Path, blocks: Covariance
) -> None:
    with open_model(ModelSettings(short_llama, n_ctx=128)) as model:
        matrix = collect(model, CollectSettings((TEXT,), CHUNKS, process_output=True))
    weights = matrix.weights()
    assert weights.keys() == blocks.taken_by.keys()
    for name, mean in weights.items():
        edges = blocks.edges(blocks.taken_by[name], mean.size)
        parts = [blocks.mean(blocks.taken_by[name], start, (0, 1)) for start, _ in edges]
        diagonal = np.concatenate([part.diagonal() for part in parts])
        np.testing.assert_allclose(diagonal, mean.reshape(-1), rtol=1e-4)


def test_find_inputs_keeps_shared_inputs_once(blocks: Covariance) -> None:
    sharing = {w for w, i in blocks.taken_by.items() if i == blocks.taken_by["blk.1.attn_k.weight"]}
    assert sharing == {f"blk.1.attn_{kind}.weight" for kind in "qkv"}
    assert blocks.taken_by["blk.1.ffn_up.weight"] == blocks.taken_by["blk.1.ffn_gate.weight"]
    assert blocks.origin.tokens == (128, 128)


def test_collect_covariance_blocks_equal_the_full_matrix(
    short_llama: Path, blocks: Covariance, tmp_path: Path
) -> None:
    full = collected(short_llama, tmp_path / "full.gguf", block=FULL)
    name = "blk.1.ffn_down.weight"
    assert full.edges(name, 768) == [(0, 768)]
    assert blocks.edges(name, 768) == [(0, 256), (256, 512), (512, 768)]
    whole = full.mean(name, 0, (1,))
    assert np.linalg.eigvalsh(whole).min() > -1e-6 * np.trace(whole)
    for start, end in blocks.edges(name, 768):
        part = blocks.mean(name, start, (1,))
        np.testing.assert_allclose(part, whole[start:end, start:end], rtol=1e-4, atol=1e-5)


def test_collect_covariance_with_little_memory_gives_the_same_sums(
    short_llama: Path, blocks: Covariance, tmp_path: Path
) -> None:
    stages: list[float] = []
    small = collected(
        short_llama, tmp_path / "s.gguf", lambda e: stages.append(e.total), memory=3 << 20
    )
    assert stages[0] > 2
    assert {info.name for info in small.file.tensors} == {i.name for i in blocks.file.tensors}
    for info in blocks.file.tensors:
        same = small.file.data(small.file.tensor(info.name))
        assert same.tobytes() == blocks.file.data(info).tobytes()


class Stop(Exception):
    pass


def test_collect_covariance_resumes_with_the_next_part(
    short_llama: Path, blocks: Covariance, tmp_path: Path
) -> None:
    path = tmp_path / "c.gguf"

    def stop(event: Event) -> None:
        if event.done > 1:
            raise Stop

    with pytest.raises(Stop):
        collected(short_llama, path, stop)
    assert not path.exists()
    seen: list[float] = []
    collected(short_llama, path, lambda event: seen.append(event.done))
    assert min(seen) == 1
    assert path.read_bytes() == blocks.file.path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["c.gguf"]


def test_collect_covariance_keeps_a_file_of_the_same_inputs_and_replaces_others(
    short_llama: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.gguf"
    collected(short_llama, path)
    before = path.stat().st_mtime_ns
    collected(short_llama, path)
    assert path.stat().st_mtime_ns == before
    again = collected(short_llama, path, chunks=ChunkSettings(n_ctx=64, limit=3))
    assert again.origin.tokens == (128, 64)
    before = KeyValue.of("minitron.covariance.version", ValueType.UINT32, 1)
    with GgufWriter(
        path, [KeyValue.of("general.type", ValueType.STRING, "covariance"), before], []
    ):
        pass
    with pytest.raises(Damaged, match="another version"):
        open_covariance(path)
    assert collected(short_llama, path).origin.tokens == (128, 128)


def test_collect_covariance_refuses_a_block_larger_than_the_memory(
    short_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutOfResources, match="memory"):
        collected(short_llama, tmp_path / "c.gguf", memory=1000)
    with pytest.raises(Usage, match="fewer than two chunks"):
        collected(short_llama, tmp_path / "c.gguf", chunks=ChunkSettings(n_ctx=64, limit=1))


def test_collect_covariance_checks_the_disk_first(
    short_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OutOfResources, match="free, and the covariance needs"):
        collected(short_llama, tmp_path / "c.gguf")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("block", "runs"), [(BLOCK, 1), (FULL, 3)])
def test_collect_covariance_of_a_4b_model_stays_within_the_memory(block: int, runs: int) -> None:
    inputs = ModelInputs()
    for layer in range(32):
        for name, columns in (("q", 3072), ("o", 4096), ("up", 3072), ("down", 9216)):
            inputs.columns[f"blk.{layer}.{name}"] = columns
    wanted = CovarianceSettings((), block=block)
    passes = list(_passes(wanted, inputs))
    sizes = [sum(spec.nbytes for spec in each.specs) for each in passes]
    assert len(passes) == PARTS * runs and max(sizes) <= wanted.memory == 6 << 30
    assert [n for each in passes if each.part == 0 for n in each.blocks] == [*inputs.columns]


def test_block_edges_are_even_and_whole_super_blocks() -> None:
    assert block_edges(9216, 1024) == [(k * 1024, (k + 1) * 1024) for k in range(9)]
    assert block_edges(1280, 1024) == [(0, 512), (512, 1280)]
    assert block_edges(100, 1024) == [(0, 100)]
    assert block_edges(96, 64) == [(0, 32), (32, 96)]
    assert block_edges(100, 64) == [(0, 50), (50, 100)]


def test_gram_sums_name_inputs_that_are_not_finite() -> None:
    sums = GramSums({"x.weight": [(0, 2)]})
    sums.add("x.weight", np.array([[1, np.nan]], np.float32))
    with pytest.raises(MinitronError, match=r"x\.weight"):
        list(sums.take())
    sums.close()


def test_open_covariance_refuses_other_files(blocks: Covariance, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_covariance(tmp_path / "none.gguf")
    path = tmp_path / "other.gguf"
    entry = KeyValue.of("general.type", ValueType.STRING, "imatrix")
    with GgufWriter(path, [entry], [TensorSpec("x", (1,), F32)]) as writer:
        writer.write(np.ones(1, np.float32))
    with pytest.raises(Damaged, match="not a covariance"):
        open_covariance(path)
    with pytest.raises(Damaged, match="no covariance of 512 columns"):
        blocks.edges("blk.0.attn_q.weight", 512)
    with pytest.raises(Damaged, match="no covariance of 256 columns"):
        blocks.edges("blk.9.attn_q.weight", 256)


def test_covariance_refuses_sums_that_are_not_finite(blocks: Covariance, tmp_path: Path) -> None:
    file = open_gguf(blocks.file.path)
    data = bytearray(file.path.read_bytes())
    info = file.tensor("blk.0.ffn_down.weight.0.256")
    start = file.data_offset + info.offset
    data[start : start + 4] = np.float32(np.inf).tobytes()
    (tmp_path / "c.gguf").write_bytes(data)
    damaged = open_covariance(tmp_path / "c.gguf")
    with pytest.raises(Damaged, match="not finite"):
        damaged.mean("blk.0.ffn_down.weight", 256, (0, 1))
