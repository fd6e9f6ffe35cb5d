"""Where blocks of malloc begin after `align`, and that nothing else changes."""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minitron_engine.llama.context import Batch, Logits, open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_engine.process import malloc_alignment


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="another malloc than glibc's"
)
@pytest.mark.parametrize("past", [0, 16, 48])
def test_the_next_large_block_begins_where_it_should(past: int) -> None:
    # in a process of its own: a heap in which much is free gives what fits best
    code = f"""from minitron_engine.process import malloc_alignment
for size in (1 << 20, 8 << 20, 24 << 20):
    malloc_alignment.align({past})
    print(malloc_alignment._glibc().malloc(size) % 64)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(past)] * 3


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Other())
    malloc_alignment._glibc.cache_clear()
    try:
        malloc_alignment.align()
        assert malloc_alignment._glibc() is None
    finally:
        malloc_alignment._glibc.cache_clear()


@pytest.mark.parametrize("past", [0, 16])
def test_logits_are_the_same_wherever_it_begins(past: int, nano_llama: Path) -> None:
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
