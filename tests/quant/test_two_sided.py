"""Two-sided GPTQ: rows compensate for each other, and what the gradients of a model weigh."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.small_model import write_two_layers
from helpers.support import EXAMPLES, with_entry
from helpers.tiny_checkpoints import make_checkpoint
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import Damaged, OutOfResources, Unsupported
from minitron_core.gguf import TYPE_ID, ValueType, open_gguf
from minitron_core.hashing import model_fingerprint
from minitron_core.progress import Event, ignore
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.loading import open_model
from minitron_quant.array_backend import Bytes, Doubles, Floats
from minitron_quant.blocks import decode_blocks, encode_blocks
from minitron_quant.chunking import ChunkSettings, chunk_text, read_text
from minitron_quant.covariance.gram import block_edges
from minitron_quant.gptq import output_gradients, transformers_model
from minitron_quant.gptq.cholesky import factor_block
from minitron_quant.gptq.encode_rows import encode_rows
from minitron_quant.gptq.output_gradients import (
    GradientModel,
    GradientSettings,
    collect_output_hessian,
)
from minitron_quant.gptq.output_hessian import (
    BLOCK,
    HessianOrigin,
    OutputHessian,
    open_output_hessian,
    write_output_hessian,
)
from minitron_quant.gptq.sequential_levels import SequentialLevels, SequentialSettings
from minitron_quant.gptq.transformers_model import load_model, matrices
from minitron_quant.gptq.two_sided import encode_two_sided, row_factors
from minitron_quant.levels import parse_levels
from minitron_quant.model_files import EMBEDDING, open_model_files, tensors_of
from minitron_quant.quantize.prepare import QuantizeSettings
from minitron_quant.quantize.run import LevelResult, run

ROWS, COLUMNS = 512, 256
CHUNKS = ChunkSettings(n_ctx=128, limit=4, threads=1)
ORIGIN = HessianOrigin("a model", ("a text",), 1024, 4096, 128)


def correlated(size: int, seed: int) -> Doubles:
    """The covariance of values that depend on each other, much on the first of them."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((2 * size, size)) @ random.standard_normal((size, size)) / 9
    return np.asarray(values.T @ values / len(values))


def weights(seed: int = 1) -> Floats:
    values: Floats = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS), np.float32) / 20
    return values


class Encoder:
    """One-sided GPTQ of some rows to a type."""

    def __init__(self, name: str) -> None:
        self.metric = correlated(COLUMNS, 0)
        self.kind, self._blocks = TYPE_ID[name], [factor_block(0, self.metric, 0.03)]

    def __call__(self, values: Floats) -> Bytes:
        plain = encode_blocks(self.kind, values, self.metric.diagonal().astype(np.float32))
        return encode_rows(self.kind, values, plain, self._blocks)

    def cost(self, hessian: list[tuple[int, Doubles]], data: Bytes, values: Floats) -> float:
        """tr(H_O E H Eᵀ)"""
        errors = decode_blocks(self.kind, data, values.shape) - values
        parts = ((block, errors[start : start + len(block)]) for start, block in hessian)
        return float(sum(((block @ part) * (part @ self.metric)).sum() for block, part in parts))


@pytest.mark.parametrize("name", ["q2_K", "q4_0", "iq3_xxs"])
def test_encode_two_sided_costs_less_than_one_sided(name: str) -> None:
    encoder, values = Encoder(name), weights()
    hessian = [(0, correlated(256, 2)), (256, correlated(256, 3))]
    one_sided = encoder(values)
    found = encode_two_sided(encoder.kind, values, row_factors(hessian), encoder, 1)
    assert encoder.cost(hessian, found, values) < 0.8 * encoder.cost(hessian, one_sided, values)


def test_encode_two_sided_without_correlations_is_one_sided() -> None:
    encoder, values = Encoder("q3_K"), weights()
    hessian = [(0, np.diag(np.linspace(1, 2, 256))), (256, np.eye(256))]
    found = encode_two_sided(encoder.kind, values, row_factors(hessian), encoder, 1)
    assert found.tobytes() == encoder(values).tobytes()


def test_encode_two_sided_gives_the_same_bytes_with_any_threads() -> None:
    encoder, values = Encoder("q3_K"), weights()
    factors = row_factors([(0, correlated(256, 2)), (256, correlated(256, 3))])
    one, two = (
        encode_two_sided(encoder.kind, values, factors, encoder, threads) for threads in (1, 2)
    )
    assert one.tobytes() == two.tobytes()


def written(path: Path, origin: HessianOrigin = ORIGIN) -> OutputHessian:
    """Two blocks of a weight, the second with twice the values of the first."""
    block = np.arange(BLOCK * BLOCK, dtype=np.float32).reshape(BLOCK, BLOCK)
    return write_output_hessian(path, origin, {"w": [block, 2 * block]})


def test_output_hessian_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "hessian.gguf"
    written(path)
    found = open_output_hessian(path, ORIGIN)
    assert found is not None
    (first, block), (second, twice) = found.blocks("w", 2 * BLOCK)
    assert (first, second) == (0, BLOCK)
    assert block[1, 2] == BLOCK + 2 and (twice == 2 * block).all()
    assert found.blocks("another", BLOCK) == []


def test_output_hessian_of_another_model_or_text_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "hessian.gguf"
    assert open_output_hessian(path, ORIGIN) is None
    written(path)
    for change in ({"model": "another"}, {"texts": ("another",)}, {"text_tokens": 2048}):
        other = replace(ORIGIN, **change)  # type: ignore[arg-type]
        assert open_output_hessian(path, other) is None


def test_output_hessian_refuses_other_rows_and_values_that_are_not_finite(tmp_path: Path) -> None:
    found = written(tmp_path / "hessian.gguf")
    with pytest.raises(Damaged, match="other rows"):
        found.blocks("w", 2 * BLOCK + 512)
    broken = np.full((256, 256), np.nan, np.float32)
    found = write_output_hessian(tmp_path / "broken.gguf", ORIGIN, {"w": [broken]})
    with pytest.raises(Damaged, match="not finite"):
        found.blocks("w", 256)


@pytest.fixture(scope="module")
def two_layers(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-layers")
    return write_two_layers(nano_llama, folder / "nano-llama-F16.gguf")


def made(source: Path, folder: Path, *, two_sided: bool) -> LevelResult:
    """Q2_K of a model."""
    settings = QuantizeSettings(source, tuple(parse_levels(["Q2_K"])), folder, threads=1)
    wanted = SequentialSettings((EXAMPLES / "calibration.txt",), CHUNKS, two_sided=two_sided)
    (result,) = run(SequentialLevels(settings, wanted).job(settings))
    return result


def hessian_of(source: Path, folder: Path) -> Path:
    """What gradients would give, made up: a file that two-sided GPTQ takes for its own."""
    shards = open_model_files(source)
    settings = QuantizeSettings(source, tuple(parse_levels(["Q2_K"])), folder, threads=1)
    wanted = SequentialSettings((EXAMPLES / "calibration.txt",), CHUNKS)
    texts = SequentialLevels(settings, wanted).texts
    origin = HessianOrigin(model_fingerprint(shards), texts, 4 * 128, 4 * 128, 128)
    sums = {
        name: [correlated(b - a, a).astype(np.float32) for a, b in block_edges(info.rows, BLOCK)]
        for name, (_, info) in tensors_of(shards).items()
        if name.startswith("blk.") and len(info.shape) == 2
    }
    path = folder / "nano-llama.output-hessian.gguf"
    folder.mkdir(exist_ok=True)
    write_output_hessian(path, origin, sums)
    return path


def test_two_sided_levels_take_an_output_hessian_that_was_collected(
    two_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_model, "_LIBRARIES", ("not_installed",))
    kept = hessian_of(two_layers, tmp_path / "two-sided")
    two_sided = made(two_layers, tmp_path / "two-sided", two_sided=True)
    assert open_gguf(two_sided.path).get("minitron.gptq.method") == "two-sided"
    assert kept.exists()
    one_sided = made(two_layers, tmp_path / "sequential", two_sided=False)
    assert one_sided.path.stat().st_size == two_sided.path.stat().st_size
    ours, theirs = (
        {info.name: file.data(info).tobytes() for info in file.tensors}
        for file in map(open_gguf, (two_sided.path, one_sided.path))
    )
    changed = {name for name in ours if ours[name] != theirs[name]}
    matrices = {info.name for info in open_gguf(two_sided.path).tensors if len(info.shape) == 2}
    # the output matrix has no Hessian, but its inputs are others
    assert changed == matrices - {EMBEDDING}


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("_LIBRARIES", ("not_installed",), "with not_installed, not installed here"),
        ("_BYTES_PER_WEIGHT", 1 << 40, "holds the model as float32"),
    ],
)
def test_two_sided_levels_refuse_what_cannot_be_collected(
    name: str,
    value: object,
    words: str,
    two_layers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transformers_model, "_LIBRARIES", ())
    monkeypatch.setattr(transformers_model, name, value)
    with pytest.raises((Unsupported, OutOfResources), match=words):
        made(two_layers, tmp_path, two_sided=True)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module", params=["nano_llama", "nano_nemotron"])
def source(request: pytest.FixtureRequest) -> Path:
    """A bundled model, where transformers is installed."""
    for library in ("torch", "transformers", "accelerate"):
        pytest.importorskip(library, reason='pip install "minitron[transformers]"')
    path: Path = request.getfixturevalue(request.param)
    return path


def chunks_of(source: Path, count: int) -> Tokens:
    settings = QuantizeSettings(source, tuple(parse_levels(["Q2_K"])), None, threads=1)
    with open_model(replace(settings.loading, vocab_only=True)) as model:
        text = read_text(EXAMPLES / "calibration.txt")
        chunks = chunk_text(model, text, ChunkSettings(n_ctx=64, limit=count), "text").copy()
        if model.add_bos:
            chunks[:, 0] = model.bos
    return chunks


def test_collect_output_hessian_of_every_matrix(source: Path, tmp_path: Path) -> None:
    shard, chunks = open_gguf(source), chunks_of(source, 2)
    origin = replace(ORIGIN, tokens=chunks.size, context=64)
    events: list[Event] = []
    found = collect_output_hessian(
        ModelSettings(source),
        shard,
        GradientSettings(tmp_path / "hessian.gguf", origin, chunks, 1),
        events.append,
    )
    assert [event.done for event in events] == [0, 1, 2]
    for info in shard.tensors:
        blocks = found.blocks(info.name, info.rows)
        assert bool(blocks) == (info.name.startswith("blk.") and len(info.shape) == 2)
        for _, block in blocks:
            np.testing.assert_allclose(block, block.T, atol=1e-6 * block.max())
            assert np.linalg.eigvalsh(block).min() > -1e-5 * block.max()


@pytest.mark.parametrize("name", ["qwen2-tied", "starcoder2"])
def test_collect_output_hessian_of_other_architectures(name: str, tmp_path: Path) -> None:
    for library in ("torch", "transformers", "accelerate"):
        pytest.importorskip(library, reason='pip install "minitron[transformers]"')
    path = tmp_path / "model.gguf"
    convert(ConvertSettings(make_checkpoint(name, tmp_path), path, outtype="f32"))
    chunks = np.random.default_rng(0).integers(0, 250, (2, 64)).astype(np.int32)
    settings = GradientSettings(tmp_path / "hessian.gguf", ORIGIN, chunks, 1)
    found = collect_output_hessian(ModelSettings(path), open_gguf(path), settings, ignore)
    for info in open_gguf(path).tensors:
        is_matrix = info.name.startswith("blk.") and len(info.shape) == 2
        assert bool(found.blocks(info.name, info.rows)) == is_matrix


def test_gradients_are_those_of_the_rows_of_the_file(source: Path) -> None:
    """A row that the predictions depend on more weighs more: moved in the file, it moves them."""
    shard, chunks = open_gguf(source), chunks_of(source, 4)
    model = GradientModel(shard, 1)
    for name, module, order in matrices(model.model, shard):
        info = shard.tensor(name)
        ours = decode_blocks(info.type, shard.data(info), (info.rows, info.shape[0]))
        theirs = module.weight.numpy()[order]
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-6)
    name = "blk.0.attn_q.weight"
    module, order = next((m, o) for each, m, o in matrices(model.model, shard) if each == name)
    hessian = model.collect(np.repeat(chunks, 8, 0), ignore)[name]
    weight = np.concatenate([block.diagonal() for block in hessian])
    least, most = np.argsort(weight)[[0, -1]]
    before = model.logits(chunks[0])
    changes = []
    for row in (least, most):
        kept = module.weight[order[row]].clone()
        module.weight[order[row]] *= 1.5
        changes.append(np.abs(model.logits(chunks[0]) - before).mean())
        module.weight[order[row]] = kept
    assert changes[1] > changes[0]


def test_collect_output_hessian_refuses_other_logits(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_gradients, "_MAX_DIFFERENCE", 0.0)
    settings = GradientSettings(tmp_path / "hessian.gguf", ORIGIN, chunks_of(source, 2), 1)
    with pytest.raises(Unsupported, match="other logits"):
        collect_output_hessian(ModelSettings(source), open_gguf(source), settings, ignore)
    assert not settings.path.exists()


def test_load_model_names_what_transformers_does_not_read(source: Path, tmp_path: Path) -> None:
    key = "general.architecture"
    other = with_entry(source, tmp_path / "other.gguf", key, ValueType.STRING, "arcee")
    with pytest.raises(Unsupported, match=r"does not read other\.gguf"):
        load_model(open_gguf(other), "cpu")


def test_load_model_shows_nothing_of_its_own(
    source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_model(open_gguf(source), "cpu")
    assert capfd.readouterr() == ("", "")
