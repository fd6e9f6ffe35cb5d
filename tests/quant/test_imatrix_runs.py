"""Collecting that is interrupted, scored on the way, or meets experts: nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.instruction_sets import allowed, recorded
from helpers.mixture import EXPERTS, write_mixture
from helpers.support import EXAMPLES
from minitron_core.errors import MinitronError
from minitron_core.gguf import GgufWriter, TensorSpec, open_gguf
from minitron_core.progress import Event, Progress, ignore
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import open_context
from minitron_engine.llama.library import OP_MUL_MAT, Tensor
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings, chunk_text, decode_chunks, read_text
from minitron_quant.imatrix.accumulator import Accumulator
from minitron_quant.imatrix.collect import (
    Collected,
    CollectSettings,
    ResumePolicy,
    calibrate,
    collect,
    remove_state,
)
from minitron_quant.imatrix.collector import Collector
from minitron_quant.imatrix.files import read_imatrix, write_imatrix
from minitron_quant.imatrix.state import state_path
from minitron_quant.imatrix.statistics import unreached_experts
from minitron_quant.matmul_hook import weight_name

CALIBRATION, HELD_OUT = EXAMPLES / "calibration.txt", EXAMPLES / "held-out.txt"
SMALL = ChunkSettings(n_ctx=64, n_batch=128, limit=10, threads=2)


class Killed(Exception):
    """The power went out."""


def killed_after(chunks: int) -> Progress:
    def listen(event: Event) -> None:
        if event.done >= chunks:
            raise Killed

    return listen


def calibrated(
    path: Path, settings: CollectSettings, keep: ResumePolicy, progress: Progress = ignore
) -> Collected:
    with open_model(ModelSettings(path)) as model:
        return calibrate(model, settings, progress, keep)


@pytest.mark.parametrize(
    ("settings", "done"),
    [
        (ChunkSettings(n_ctx=64, n_batch=128, n_ubatch=64, limit=4, threads=2), [0, 1, 2, 3, 4]),
        (ChunkSettings(n_ctx=128, n_batch=64, limit=2, threads=1), [0, 0.5, 1, 1.5, 2]),
    ],
    ids=["two contexts", "one context"],
)
def test_calibrate_reports_progress_within_a_group_of_chunks(
    settings: ChunkSettings, done: list[float], nano_llama: Path, tmp_path: Path
) -> None:
    seen: list[float] = []
    collecting = CollectSettings((CALIBRATION,), settings)
    keep = ResumePolicy(tmp_path / "m.gguf")
    calibrated(nano_llama, collecting, keep, lambda event: seen.append(event.done))
    assert seen == done


def test_calibrate_gives_the_perplexity_of_llama_imatrix(nano_llama: Path, tmp_path: Path) -> None:
    chunks = ChunkSettings(limit=4, threads=2)
    settings = CollectSettings((CALIBRATION,), chunks, perplexity=True)
    found = calibrated(nano_llama, settings, ResumePolicy(tmp_path / "m.gguf"))
    assert found.perplexity is not None
    expected = recorded("imatrix.json")["models"]["nano-llama"]["perplexity"]["running"][3]
    assert found.perplexity[0] == pytest.approx(expected, rel=allowed(0, others=1e-3), abs=6e-5)
    with open_model(ModelSettings(nano_llama)) as model:
        plain = collect(model, CollectSettings((CALIBRATION,), chunks))
    for name, entry in plain.entries.items():
        np.testing.assert_array_equal(entry.sums, found.matrix.entries[name].sums)


@pytest.mark.parametrize(
    "settings",
    [
        CollectSettings((CALIBRATION,), SMALL),
        CollectSettings((CALIBRATION, HELD_OUT), SMALL, sums="float64", perplexity=True),
    ],
    ids=["as-llama-imatrix", "float64-perplexity-two-texts"],
)
def test_calibrate_resumed_gives_the_bytes_of_one_run(
    settings: CollectSettings, nano_llama: Path, tmp_path: Path
) -> None:
    whole = calibrated(nano_llama, settings, ResumePolicy(tmp_path / "whole.gguf"))
    path = tmp_path / "half.gguf"
    for stop in (3, 8):
        with pytest.raises(Killed):
            calibrated(nano_llama, settings, ResumePolicy(path, "continue", 2), killed_after(stop))
    rest = calibrated(nano_llama, settings, ResumePolicy(path, "continue", 2))
    assert rest.resumed == 8
    assert rest.perplexity == whole.perplexity
    for name, collected in (("a", whole), ("b", rest)):
        write_imatrix(tmp_path / name, collected.matrix)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    remove_state(path)
    assert not state_path(path).exists()


def test_calibrate_refuses_or_drops_the_state_of_another_run(
    nano_llama: Path, nano_nemotron: Path, tmp_path: Path
) -> None:
    settings = CollectSettings((CALIBRATION,), SMALL)
    path = tmp_path / "m.gguf"
    with pytest.raises(Killed):
        calibrated(nano_llama, settings, ResumePolicy(path, every=2), killed_after(4))
    other = CollectSettings((HELD_OUT,), ChunkSettings(n_ctx=32, n_batch=128, limit=4))
    with pytest.raises(MinitronError, match="had another text, --ctx, --chunks") as caught:
        calibrated(nano_llama, other, ResumePolicy(path, "continue"))
    assert "start again" in caught.value.hint
    with pytest.raises(MinitronError, match="had another model"):
        calibrated(nano_nemotron, settings, ResumePolicy(path, "continue"))
    assert calibrated(nano_llama, other, ResumePolicy(path, "if possible")).resumed == 0
    for damage in (b"", b"PK", state_path(path).read_bytes()[:-100]):
        state_path(path).write_bytes(damage)
        with pytest.raises(MinitronError, match="cannot be read"):
            calibrated(nano_llama, settings, ResumePolicy(path, "continue"))
        assert calibrated(nano_llama, other, ResumePolicy(path, "if possible")).resumed == 0


def test_imatrix_command_continues_after_kill_9(nano_llama: Path, tmp_path: Path) -> None:
    minitron = [sys.executable, "-m", "minitron_cli", "imatrix", nano_llama, "-f", CALIBRATION]
    minitron += ["-c", "64", "-b", "64", "--chunks", "30", "--threads", "2", "-q", "-o"]
    whole, path = tmp_path / "whole.gguf", tmp_path / "killed.gguf"
    subprocess.run([*minitron, whole], check=True)
    process = subprocess.Popen([*minitron, path, "--save-every", "1"])
    until = time.monotonic() + 30
    while not state_path(path).exists() and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not path.exists() and state_path(path).exists()
    again = subprocess.run([*minitron, path], capture_output=True, text=True)
    assert again.returncode == 1 and "--resume" in again.stderr
    subprocess.run([*minitron, path, "--resume"], check=True)
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.glob("[!.]*")) == [path, whole]


def test_collect_counts_experts_one_by_one(nano_llama: Path, tmp_path: Path) -> None:
    mixture = write_mixture(nano_llama, tmp_path / "mixture.gguf")
    with open_model(ModelSettings(mixture)) as model:
        matrix = collect(model, CollectSettings((CALIBRATION,), SMALL))
    write_imatrix(tmp_path / "m.gguf", matrix)
    matrix = read_imatrix(tmp_path / "m.gguf")
    for layer in range(6):
        router = matrix.entries[f"blk.{layer}.ffn_gate_inp.weight"]
        for kind in ("gate", "up", "down"):
            entry = matrix.entries[f"blk.{layer}.ffn_{kind}_exps.weight"]
            assert entry.counts.shape == (EXPERTS,) and entry.sums.shape[0] == EXPERTS
            assert entry.counts.sum() == router.counts[0] == 640
            assert entry.counts[0] > 0 and entry.counts[1] > 0
        # each token goes to one expert: together they see what the router sees
        gate = matrix.entries[f"blk.{layer}.ffn_gate_exps.weight"]
        np.testing.assert_allclose(gate.sums.sum(axis=0), router.sums[0], rtol=1e-5)
        assert gate.totals is not None and router.totals is not None
        np.testing.assert_allclose(gate.totals.sum(axis=0), router.totals[0], atol=1e-3)
    names = [
        f"blk.{layer}.ffn_{kind}_exps.weight"
        for layer in range(6)
        for kind in ("down", "gate", "up")
    ]
    assert unreached_experts(matrix) == {name: [2, 3] for name in names}


def test_collect_names_the_weight_of_inputs_that_are_not_finite(
    nano_llama: Path, tmp_path: Path
) -> None:
    file = open_gguf(nano_llama)
    specs = [TensorSpec(info.name, info.shape, info.type) for info in file.tensors]
    path = tmp_path / "broken.gguf"
    with GgufWriter(path, list(file.metadata.values()), specs) as writer:
        for info in file.tensors:
            data = file.data(info)
            if info.name == "blk.3.ffn_norm.weight":
                data = data.copy()
                data.view(np.float32)[5] = np.nan
            writer.write(data)
    with pytest.raises(MinitronError, match=r"inputs of blk\.3\.ffn_\w+\.weight are not finite"):
        calibrated(path, CollectSettings((CALIBRATION,), SMALL), ResumePolicy(tmp_path / "m.gguf"))


def test_collector_counts_products_that_share_the_last_input_in_every_decode(
    nano_llama: Path, tmp_path: Path
) -> None:
    # without its last ffn_down being wanted, the last input is one that gate and up share
    chunks = ChunkSettings(n_ctx=64, n_batch=64, limit=6, threads=2)
    collector = Collector(
        Accumulator("float32", means=True),
        {},
        lambda name: name.startswith("blk.5.ffn_") and "down" not in name,
    )
    with open_model(ModelSettings(nano_llama)) as model:
        tokens = chunk_text(model, read_text(CALIBRATION), chunks, "")
        with open_context(model, chunks.context(), collector.hook) as context:
            for _ in decode_chunks(context, tokens, chunks, 0, read_logits=False):
                collector.check()
    counts = {name: int(entry.counts[0]) for name, entry in collector.entries.items()}
    assert counts == {"blk.5.ffn_gate.weight": 384, "blk.5.ffn_up.weight": 384}


def test_collector_ends_a_decode_before_the_product_of_the_last_input(nano_llama: Path) -> None:
    chunks = ChunkSettings(n_ctx=64, n_batch=64, limit=6, threads=2)
    collector = Collector(Accumulator("float32", means=True), {})
    computed: list[str] = []

    def watch(address: int, ask: bool, data: object) -> bool:
        if not ask:
            node = Tensor.from_address(address)
            computed.append(weight_name(node) if node.op == OP_MUL_MAT else "")
        return bool(collector.observe(address, ask, data))

    with open_model(ModelSettings(nano_llama)) as model:
        tokens = chunk_text(model, read_text(CALIBRATION), chunks, "")
        hook = api.ggml_backend_sched_eval_callback(watch)
        with open_context(model, chunks.context(), hook) as context:
            for _ in decode_chunks(context, tokens, chunks, 0, read_logits=False):
                collector.check()
    last = "blk.5.ffn_down.weight"
    # the first decode finds out which it is, the second one which node its input is
    assert computed.count(last) < 3 and computed.count("") > 3
    assert collector.entries[last].counts[0] == 384


def test_collector_shares_sums_of_a_shared_input_to_the_end(nano_llama: Path) -> None:
    chunks = ChunkSettings(n_ctx=64, n_batch=64, limit=6, threads=2)
    collector = Collector(Accumulator("float32", means=True), {})

    def part(address: int, ask: bool, data: object) -> bool:
        if not collector._learning:
            collector._shared = None  # as if no input had been reduced before
        return bool(collector.observe(address, ask, data))

    def run(model: Model, hook: object) -> None:
        tokens = chunk_text(model, read_text(CALIBRATION), chunks, "")
        with open_context(model, chunks.context(), hook) as context:
            for _ in decode_chunks(context, tokens, chunks, 0, read_logits=False):
                collector.check()

    with open_model(ModelSettings(nano_llama)) as model:
        run(model, collector.hook)
        query, value = (collector.entries[f"blk.0.attn_{kind}.weight"] for kind in "qv")
        assert query is value and query.counts[0] == 384
        with pytest.raises(MinitronError, match=r"blk\.0\.attn_\w\.weight inputs of its own"):
            run(model, api.ggml_backend_sched_eval_callback(part))
