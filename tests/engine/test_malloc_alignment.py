"""Where blocks of malloc begin after `align`, and that nothing else changes."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.kernels import built_library
from minitron_core.kernels import SWITCH, Kernels, kernels
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import Context, Logits, open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_engine.process import malloc_alignment

GLIBC = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
CODE = """import ctypes
from minitron_engine.process.malloc_alignment import align
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_size_t
for size in (1 << 20, 8 << 20, 24 << 20):
    align({past})
    print(malloc(ctypes.c_size_t(size)) % 64)"""


@pytest.mark.skipif(not GLIBC, reason="another malloc than glibc's")
@pytest.mark.parametrize("past", [0, 16, 48])
def test_align_moves_the_next_large_block(past: int) -> None:
    if kernels().library is None:
        pytest.skip("the package has no compiled library here")
    # a threshold that is set, as Dask sets one, keeps glibc from adjusting the others
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    # in a process of its own: a heap in which much is free gives what fits best
    command = [sys.executable, "-c", CODE.format(past=past)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=usual)
    assert run.stdout.split() == [str(past)] * 3


def test_align_does_nothing_without_the_library() -> None:
    off = os.environ | {SWITCH: "0"}
    subprocess.run([sys.executable, "-c", CODE.format(past=0)], check=True, env=off)


def decode(context: Context, count: int) -> Logits:
    context.clear()
    batch = Batch(128)
    batch.add(np.arange(count, dtype=np.int32) + 5, 0, 0, np.arange(count) % 16 == 15)
    context.decode(batch)
    return context.logits(count // 16).copy()


@pytest.mark.parametrize("past", [0, 16])
def test_decode_gives_the_same_logits_wherever_work_memory_begins(
    past: int, nano_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_library()
    settings = ContextSettings(n_ctx=128, n_batch=128, threads=2)
    with open_model(ModelSettings(nano_llama, gpu_layers=0)) as model:
        with open_context(model, settings) as aligned:
            aligned.work_alignment.past = past
            ours = decode(aligned, 128)
        monkeypatch.setattr(malloc_alignment, "kernels", lambda: Kernels(None, 0, ""))
        with open_context(model, settings) as plain:
            np.testing.assert_array_equal(decode(plain, 128), ours)


@pytest.mark.parametrize("native", [True, False])
def test_decode_wants_alignment_only_for_more_tokens_than_before(
    native: bool, nano_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = built_library() if native else Kernels(None, 0, "")
    monkeypatch.setattr(malloc_alignment, "kernels", lambda: library)
    wanted = []
    with (
        open_model(ModelSettings(nano_llama, gpu_layers=0)) as model,
        open_context(model, ContextSettings(n_ctx=128, n_batch=128, threads=2)) as context,
    ):
        for count in (32, 16, 64):
            decode(context, count)
            wanted.append(context.work_alignment.wanted)
            context.work_alignment.wanted = 0
    # the library's callback has seen to it
    assert wanted == ([0, 0, 0] if native else [1, 0, 1])
