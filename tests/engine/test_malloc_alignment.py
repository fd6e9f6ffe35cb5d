"""Where blocks of malloc begin after `align`, and that nothing else changes."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import Logits, open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_engine.process import malloc_alignment


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="another malloc than glibc's"
)
@pytest.mark.parametrize("past", [0, 16, 48])
def test_align_moves_the_next_large_block(past: int) -> None:
    # in a process of its own: a heap in which much is free gives what fits best
    code = f"""import ctypes
from minitron_engine.process.malloc_alignment import align
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_size_t
for size in (1 << 20, 8 << 20, 24 << 20):
    align({past})
    print(malloc(ctypes.c_size_t(size)) % 64)"""
    # a threshold that is set, as Dask sets one, keeps glibc from adjusting the others
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=usual)
    assert run.stdout.split() == [str(past)] * 3


def test_align_does_nothing_without_glibc() -> None:
    code = """import ctypes
from minitron_engine.process.malloc_alignment import align
class Other:
    def __getattr__(self, name):
        raise AttributeError(name)
ctypes.CDLL = lambda name: Other()
align()"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("past", [0, 16])
def test_aligning_hook_keeps_logits(past: int, nano_llama: Path) -> None:
    def logits(hook: object) -> Logits:
        with (
            open_model(ModelSettings(nano_llama)) as model,
            open_context(model, ContextSettings(n_ctx=128, n_batch=128, threads=2), hook) as opened,
        ):
            batch = Batch(128)
            batch.add(np.arange(128, dtype=np.int32) + 5, 0, 0, np.arange(128) % 16 == 15)
            opened.decode(batch)
            return opened.logits(8).copy()

    np.testing.assert_array_equal(logits(malloc_alignment.aligning_hook(past)), logits(None))
