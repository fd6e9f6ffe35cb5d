"""How many layers go to the GPUs, with cards that are not there and llama.cpp's own sizes."""

from dataclasses import replace
from pathlib import Path

import pytest

from minitron_core.gguf import layer_bytes, open_gguf
from minitron_engine.llama import devices
from minitron_engine.llama.devices import Device
from minitron_engine.llama.settings import (
    ALL_LAYERS,
    EVERY_GPU,
    ContextSettings,
    ModelSettings,
    Placement,
)
from minitron_engine.loading import open_model
from minitron_engine.memory import gpu_layers
from minitron_engine.memory.estimate import MemoryEstimate, estimate_memory
from minitron_engine.memory.gpu_layers import MARGIN, choose_layers, most_layers


def weights_of(path: Path) -> list[int]:
    return layer_bytes((info.name, info.nbytes) for info in open_gguf(path).tensors)


# four layers of 100 bytes with a cache of 10 each, and an output of 150
WEIGHTS = (100, 100, 100, 100, 150)
NEEDS = MemoryEstimate(layers=4, cache=40, compute=30)


def card(room: int, number: int = 0) -> Device:
    return Device(f"CUDA{number}", "a card", "gpu", MARGIN + room, 1 << 40)


@pytest.mark.parametrize(
    ("room", "expected"),
    [(-MARGIN, 0), (0, 0), (179, 0), (180, 1), (289, 1), (290, 2), (619, 4), (620, 5)],
)
def test_most_layers_fits_weights_cache_and_buffers(room: int, expected: int) -> None:
    assert most_layers(WEIGHTS, NEEDS, [30], [card(room)], EVERY_GPU)[0] == expected


def test_most_layers_splits_by_free_memory() -> None:
    # 330 and 260 bytes of room: three layers on the first, one and the output on the second
    cards = [card(360, 0), card(290, 1)]
    layers, placement = most_layers(WEIGHTS, NEEDS, [30, 30], cards, EVERY_GPU)
    assert layers == 5
    assert placement == Placement(names=("CUDA0", "CUDA1"), tensor_split=(330.0, 260.0))
    # a card without room takes nothing, and does not keep the other from taking all
    layers, placement = most_layers(WEIGHTS, NEEDS, [30, 30], [card(700), card(20, 1)], EVERY_GPU)
    assert (layers, placement.tensor_split) == (5, (670.0, 0.0))
    assert most_layers(WEIGHTS, NEEDS, [30, 30], [card(0), card(0, 1)], EVERY_GPU)[0] == 0


def test_most_layers_keeps_a_given_split() -> None:
    cards = [card(360, 0), card(290, 1)]
    even = Placement(tensor_split=(1.0, 1.0))
    # halves of four: two layers, and a layer with the output; five would be three and two
    assert most_layers(WEIGHTS, NEEDS, [30, 30], cards, even) == (5, even)
    uneven = Placement(tensor_split=(0.0, 1.0))
    assert most_layers(WEIGHTS, NEEDS, [30, 30], cards, uneven) == (2, uneven)
    rows = Placement("row", (1.0, 1.0))
    assert most_layers(WEIGHTS, NEEDS, [30, 30], cards, rows) == (4, rows)


def test_layer_bytes_sum_up_to_the_file(nano_llama: Path, nano_nemotron: Path) -> None:
    for path in (nano_llama, nano_nemotron):
        tensors = {info.name: info.nbytes for info in open_gguf(path).tensors}
        sizes = weights_of(path)
        own_output = "output.weight" in tensors
        expected = sum(tensors.values()) - (tensors["token_embd.weight"] if own_output else 0)
        assert sum(sizes) == expected
        first = sum(size for name, size in tensors.items() if name.startswith("blk.0."))
        assert sizes[0] == first
        assert len(sizes) == max(int(n.split(".")[1]) for n in tensors if n[:4] == "blk.") + 2


def test_choose_layers_fits_all_that_a_dry_load_measures(nano_llama: Path) -> None:
    context = ContextSettings(4096, 512)
    needs = estimate_memory(nano_llama, context)
    whole = sum(weights_of(nano_llama)) + needs.cache + needs.compute
    # llama.cpp knows the device by this name, so the buffers are those that it measures
    exact = Device("CPU", "stands for a card", "gpu", MARGIN + whole, 1 << 40)
    settings = ModelSettings(nano_llama, context=context)
    choice = choose_layers(settings, [exact])
    assert choice.layers == ALL_LAYERS
    assert "GiB of weights" in choice.reason and "of buffers" in choice.reason
    tight = exact._replace(free=exact.free - 1)
    assert choose_layers(settings, [tight]).layers == len(weights_of(nano_llama)) - 1
    # a longer context needs more of everything
    longer = replace(settings, context=replace(context, n_ctx=8192))
    assert choose_layers(longer, [exact]).layers < len(weights_of(nano_llama))
    asked = choose_layers(replace(settings, gpu_layers=2), [tight])
    assert (asked.layers, asked.reason) == (2, "--gpu-layers 2")
    assert choose_layers(replace(settings, gpu_layers="all"), [tight]).layers == ALL_LAYERS


def test_open_model_offloads_what_fits(monkeypatch: pytest.MonkeyPatch, nano_llama: Path) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: [card(8 << 30)])
    with open_model(ModelSettings(nano_llama)) as model:
        assert model.offloaded == model.n_layers + 1
    monkeypatch.setattr(devices, "gpus", lambda: [card(0)])
    with open_model(ModelSettings(nano_llama)) as model:
        assert (model.offloaded, model.device) == (0, "CPU")
        assert "free" in model.reason
    with open_model(ModelSettings(nano_llama, gpu_layers=0)) as model:
        assert (model.offloaded, model.reason) == (0, "")
    monkeypatch.setattr(devices, "gpus", list)
    monkeypatch.setattr(gpu_layers, "estimate_memory", None)  # nothing is measured without a GPU
    with open_model(ModelSettings(nano_llama)) as model:
        assert model.offloaded == 0


def test_memory_estimate_finds_buffers_by_device() -> None:
    needs = MemoryEstimate(4, 40, 12, {"CUDA0": 5, "CUDA_Host": 1, "RPC0[127.0.0.1:50052]": 6})
    assert needs.buffer(card(0)) == 5
    assert needs.buffer(card(0, 1)) == 0
    assert needs.buffer(Device("RPC1", "127.0.0.1:50052", "gpu", 0, 0)) == 6
