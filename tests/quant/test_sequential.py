"""Sequential GPTQ: better files of the same size, the same bytes whatever happens on the way."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minitron
from helpers.small_model import write_two_layers
from helpers.support import EXAMPLES, with_entry
from minitron_core import stop
from minitron_core.errors import Damaged, MinitronError, OutOfResources, Usage
from minitron_core.gguf import TYPE_ID, GgufWriter, TensorSpec, ValueType, open_gguf
from minitron_core.progress import Event, Progress, ignore
from minitron_quant.chunking import ChunkSettings
from minitron_quant.gptq import sequential_store
from minitron_quant.gptq.drift import DriftSettings
from minitron_quant.gptq.forecast import forecast_sequential
from minitron_quant.gptq.held_out import quantize_verified
from minitron_quant.gptq.sequential import SequentialGptq, SequentialJob
from minitron_quant.gptq.sequential_levels import SequentialLevels, SequentialSettings
from minitron_quant.levels import parse_levels
from minitron_quant.model_files import EMBEDDING, OUTPUT, open_model_files
from minitron_quant.perplexity.held_out import mean_kld, measure_divergence
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.prepare import ConvertedSource, QuantizeSettings
from minitron_quant.quantize.run import LevelResult, run

LEVELS = ("Q2_K", "Q4_0")
CHUNKS = ChunkSettings(n_ctx=128, limit=8, threads=1)
NAMES = ["nano-llama-Q2_K.gguf", "nano-llama-Q4_0.gguf", "nano-llama.manifest.json"]


def settings_of(source: Path, folder: Path, levels: Sequence[str] = LEVELS) -> QuantizeSettings:
    return QuantizeSettings(source, tuple(parse_levels(levels)), folder, threads=1)


def levels_of(settings: QuantizeSettings, **more: object) -> SequentialLevels:
    text = (EXAMPLES / "calibration.txt",)
    return SequentialLevels(settings, SequentialSettings(text, CHUNKS, **more))  # type: ignore[arg-type]


def made(settings: QuantizeSettings, progress: Progress = ignore) -> dict[str, LevelResult]:
    job = levels_of(settings).job(settings)
    return {result.level: result for result in run(job, progress)}


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture(scope="module")
def two_layers(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_layers(
        nano_llama, tmp_path_factory.mktemp("two-layers") / "nano-llama-F16.gguf"
    )


@pytest.fixture(scope="module")
def files(two_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LevelResult]:
    """Both levels, made in one go."""
    return made(settings_of(two_layers, tmp_path_factory.mktemp("sequential")))


def test_sequential_files_are_whole_and_as_large_as_others(
    two_layers: Path, files: dict[str, LevelResult]
) -> None:
    assert names_in(files["Q2_K"].path.parent) == NAMES
    for result in files.values():
        file = open_gguf(result.path)
        assert file.get("minitron.gptq.method") == "sequential"
        assert file.get("minitron.gptq.tokens") == 8 * 128
    # a second call finds them up to date
    again = made(settings_of(two_layers, files["Q2_K"].path.parent))
    assert all(result.kept for result in again.values())


def test_sequential_diverges_less_than_plain_codes(
    two_layers: Path, files: dict[str, LevelResult], tmp_path: Path
) -> None:
    settings = settings_of(two_layers, tmp_path, ["Q2_K"])
    (plain,) = run(levels_of(settings).plain_job(settings))
    chunks = ChunkSettings(n_ctx=128, limit=4, threads=1)
    wanted = MeasureSettings((), EXAMPLES / "held-out.txt", chunks, reference=two_layers)
    before, after = map(mean_kld, measure_divergence(wanted, [plain.path, files["Q2_K"].path]))
    assert after < 0.9 * before


class Killed(KeyboardInterrupt):
    pass


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(15, id="in the first stage of the second layer"),
        pytest.param(18, id="within the second level's first stage"),
        pytest.param(13, id="before the last matrix of the first layer"),
        pytest.param(29, id="before the last output matrix"),
    ],
)
def test_sequential_continues_with_the_matrix_in_work(
    two_layers: Path,
    files: dict[str, LevelResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoded: int,
) -> None:
    settings, chosen = settings_of(two_layers, tmp_path), SequentialGptq._chosen
    calls: list[str] = []

    def killed(self: SequentialGptq, level: str, source: str, *more: Any) -> Any:
        if len(calls) == encoded:
            raise Killed
        calls.append(f"{level} {source}")
        return chosen(self, level, source, *more)

    monkeypatch.setattr(SequentialGptq, "_chosen", killed)
    with pytest.raises(Killed) as stopped:
        made(settings)
    assert " of 2 layers are kept in " in stop.kept(stopped.value)[0]
    assert not list(tmp_path.glob("*.gguf"))
    before = set(calls)
    calls.clear()
    encoded = 30
    again = made(settings)
    assert len(before) + len(calls) == 30 and not before & set(calls)
    for level, result in files.items():
        assert again[level].path.read_bytes() == result.path.read_bytes()
    assert names_in(tmp_path) == NAMES


def test_sequential_encodes_a_tied_embedding_whose_type_needs_importance(
    two_layers: Path, tmp_path: Path
) -> None:
    file = open_gguf(two_layers)
    tensors = [info for info in file.tensors if info.name != OUTPUT]
    tied = tmp_path / "tied-F16.gguf"
    specs = [TensorSpec(info.name, info.shape, info.type) for info in tensors]
    with GgufWriter(tied, [*file.metadata.values()], specs) as writer:
        for info in tensors:
            writer.write(file.data(info))
    options = QuantizeOptions(embedding_type=TYPE_ID["iq2_xxs"])
    settings = replace(settings_of(tied, tmp_path / "out", ["Q4_0"]), options=options)
    few = SequentialSettings((EXAMPLES / "calibration.txt",), replace(CHUNKS, limit=2))
    (result,) = run(SequentialLevels(settings, few).job(settings))
    assert open_gguf(result.path).tensor(EMBEDDING).type == TYPE_ID["iq2_xxs"]


def test_quantize_refuses_sequential_gptq_of_a_converted_source(
    two_layers: Path, tmp_path: Path
) -> None:
    settings = settings_of(two_layers, tmp_path)
    file = open_gguf(two_layers)
    converted = ConvertedSource(file, file.data, (two_layers,))
    sequential = SequentialSettings((EXAMPLES / "calibration.txt",), CHUNKS)
    with pytest.raises(Usage, match="GGUF file"):
        minitron.quantize(settings, sequential=sequential, converted=converted)


def test_sequential_gives_the_same_bytes_with_two_threads_and_for_one_level(
    two_layers: Path, files: dict[str, LevelResult], tmp_path: Path
) -> None:
    settings = replace(settings_of(two_layers, tmp_path, ["Q4_0"]), threads=2)
    assert made(settings)["Q4_0"].path.read_bytes() == files["Q4_0"].path.read_bytes()


def test_sequential_keeps_nothing_of_other_settings_or_another_model(
    two_layers: Path, tmp_path: Path
) -> None:
    source = tmp_path / two_layers.name
    source.write_bytes(two_layers.read_bytes())
    settings = settings_of(source, tmp_path / "settings", ["Q4_0"])

    def kill(event: Event) -> None:
        if event.stage == "gptq" and event.done > 1:
            raise Killed

    with pytest.raises(Killed):
        made(settings, kill)
    shutil.copytree(tmp_path / "settings", tmp_path / "model")
    seen: list[float] = []

    def halt(event: Event) -> None:
        seen.append(event.done)
        raise Killed

    drift = DriftSettings(gamma=0)
    with pytest.raises(Killed):
        list(run(levels_of(settings, drift=drift).job(settings), halt))
    # a model of the same name and size
    os.utime(source, ns=(1, 1))
    with pytest.raises(Killed):
        made(replace(settings, directory=tmp_path / "model"), halt)
    assert seen == [0, 0]


def test_sequential_refuses_a_disk_without_room_for_states(
    two_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(two_layers, tmp_path, ["Q4_0"])
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OutOfResources, match="the states of the text need"):
        made(settings)


def test_sequential_refuses_a_source_that_changes(two_layers: Path, tmp_path: Path) -> None:
    source = tmp_path / two_layers.name
    source.write_bytes(two_layers.read_bytes())
    settings = settings_of(source, tmp_path / "out", ["Q4_0"])

    def touch(event: Event) -> None:
        if event.stage == "gptq" and event.done == 2:
            with source.open("r+b") as file:
                file.write(b"G")

    with pytest.raises(MinitronError, match="was changed while it was read"):
        made(settings, touch)
    assert not list((tmp_path / "out").glob("*.gguf"))


def test_quantize_verified_compares_sequential_codes_with_plain_ones(
    two_layers: Path, files: dict[str, LevelResult]
) -> None:
    settings = settings_of(two_layers, files["Q4_0"].path.parent, ["Q4_0"])
    chunks = ChunkSettings(n_ctx=128, limit=4, threads=1)
    held_out = MeasureSettings((), EXAMPLES / "held-out.txt", chunks, reference=two_layers)
    (proved,) = quantize_verified(settings, levels_of(settings), held_out)
    assert proved.result.kept
    assert proved.comparison.better and proved.comparison.kld < proved.comparison.baseline_kld
    text = replace(held_out, text=EXAMPLES / "calibration.txt")
    with pytest.raises(Usage, match="proves nothing"):
        quantize_verified(settings, levels_of(settings), text)


def test_chunks_are_no_longer_than_the_context_of_the_model(
    two_layers: Path, tmp_path: Path
) -> None:
    short = with_entry(
        two_layers, tmp_path / "short.gguf", "llama.context_length", ValueType.UINT32, 64
    )
    made = levels_of(settings_of(short, tmp_path)).document
    assert (made["context"], made["tokens"]) == (64, 8 * 64)


def test_codes_of_a_damaged_store_are_refused(tmp_path: Path) -> None:
    store = sequential_store.SequentialStore(tmp_path / "work", "x", (4, 2), ["Q4_0"])
    store.begin(0)
    store.keep("Q4_0", EMBEDDING, np.arange(6, dtype=np.uint8))
    store.finish_layer()
    assert store.codes("Q4_0", EMBEDDING, 2, 3).tolist() == [2, 3, 4]
    with pytest.raises(Damaged, match="was changed"):
        store.codes("Q4_0", EMBEDDING, 2, 5)
    with pytest.raises(Damaged, match="was changed"):
        store.states("full", 0)
    assert sequential_store.SequentialStore(tmp_path / "work", "y", (4, 2), ["Q4_0"]).layers == -1


def test_forecast_is_of_the_layers_that_are_left(two_layers: Path, known_speed: None) -> None:
    shards = open_model_files(two_layers)
    types = {info.name: TYPE_ID["q4_0"] for info in shards[0].tensors}
    tokens = np.zeros((4, 128), np.int32)
    job = SequentialJob(shards, {"Q4_0": types}, tokens, DriftSettings(), block=256, threads=1)
    whole, half, nothing = (forecast_sequential(job, layers, 1e6) for layers in (2, 1, 0))
    assert whole.seconds > half.seconds > nothing.seconds == 0
    assert whole.memory == half.memory > 0 and whole.disk == 1e6
    both = whole.two_sided(1e12)
    assert both.seconds > whole.seconds and both.memory == 1e12 and both.disk == whole.disk
    assert str(both).startswith("two-sided GPTQ takes about")
