"""Devices by name, and how a model is split between them; all of it without a GPU."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from minitron_core.errors import Usage
from minitron_engine.llama import devices
from minitron_engine.llama.binding import api
from minitron_engine.llama.model import apply_placement
from minitron_engine.llama.settings import Placement

CARDS = [devices.Device(f"CUDA{n}", "a card", "gpu", 1 << 33, 1 << 33) for n in range(3)]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: CARDS)


def test_select_gpus_by_name_and_number(cards: None) -> None:
    assert devices.select_gpus(Placement()) == CARDS
    assert devices.select_gpus(Placement(names=("CUDA2", "CUDA0"))) == [CARDS[2], CARDS[0]]
    assert devices.select_gpus(Placement("none", main_gpu=1)) == [CARDS[1]]
    assert devices.select_gpus(Placement(names=())) == []
    with pytest.raises(Usage, match="no device CUDA7"):
        devices.select_gpus(Placement(names=("CUDA7",)))
    with pytest.raises(Usage, match="no GPU 3"):
        devices.select_gpus(Placement(main_gpu=3))


@pytest.mark.parametrize("shares", [(-1.0,), (0.0, 0.0), (float("nan"),)])
def test_placement_refuses_impossible_shares(shares: tuple[float, ...]) -> None:
    with pytest.raises(Usage):
        Placement(tensor_split=shares)


def test_apply_placement_fills_llama_cpps_parameters() -> None:
    parameters: Any = api.llama_model_default_params()
    with pytest.raises(Usage, match="at most"):
        apply_placement(Placement(tensor_split=(1.0,) * 1000), parameters)
    kept = apply_placement(Placement("row", (3.0, 1.0), 1, ("CPU",)), parameters)
    assert (parameters.split_mode, parameters.main_gpu) == (api.LLAMA_SPLIT_MODE_ROW, 1)
    assert list(parameters.tensor_split[: api.llama_max_devices()])[:3] == [3.0, 1.0, 0.0]
    handles = ctypes.cast(parameters.devices, ctypes.POINTER(ctypes.c_void_p))
    assert handles[0] and not handles[1]
    assert len(kept) == 2


def test_select_gpus_puts_rpc_first_and_integrated_only_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remote = devices.Device("RPC0", "127.0.0.1:50052", "gpu", 1 << 33, 1 << 33)
    shared = devices.Device("Vulkan0", "part of the processor", "igpu", 1 << 33, 1 << 33)
    monkeypatch.setattr(devices, "gpus", lambda: [CARDS[0], shared, remote])
    assert devices.select_gpus(Placement()) == [remote, CARDS[0]]
    monkeypatch.setattr(devices, "gpus", lambda: [shared, remote])
    assert devices.select_gpus(Placement()) == [remote, shared]


def test_missing_gpu_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Registry:
        ggml_backend_reg_by_name = staticmethod({b"CUDA": 1}.get)

    monkeypatch.setattr(devices, "gpus", list)
    monkeypatch.setattr(devices, "Path", lambda name: tmp_path / "none")
    assert devices.missing_gpu() == ""
    monkeypatch.setattr(devices, "registry", Registry)
    monkeypatch.setattr(devices.log, "last_error", lambda after: "no device")
    told = devices.missing_gpu()
    assert "built with CUDA, but nothing is offloaded" in told and "no NVIDIA driver" in told
    monkeypatch.setattr(devices, "gpus", lambda: CARDS)
    assert devices.missing_gpu() == ""
