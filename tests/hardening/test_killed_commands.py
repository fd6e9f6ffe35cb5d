"""Commands killed by the clock, many times; `make harden` runs these, the suite does not."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.harden

LEVELS = ("Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0")


def quantizing(source: Path, folder: Path) -> subprocess.Popen[bytes]:
    words = (sys.executable, "-m", "minitron_cli", "quantize", source, *LEVELS, "-d", folder)
    return subprocess.Popen([*words, "-q"], stdout=subprocess.DEVNULL)


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("[!.]*.gguf")}


@pytest.mark.parametrize("seed", range(20))
def test_quantize_killed_by_the_clock(seed: int, nano_llama: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    assert quantizing(nano_llama, tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - started
    whole = hashes(tmp_path / "whole")
    assert len(whole) == len(LEVELS)
    draw = random.Random(seed)
    folder = tmp_path / "killed"
    for _ in range(3):  # and again while it goes on
        job = quantizing(nano_llama, folder)
        time.sleep(draw.uniform(0, seconds))
        job.send_signal(signal.SIGKILL)
        job.wait()
        assert hashes(folder).items() <= whole.items()
    assert quantizing(nano_llama, folder).wait() == 0
    assert hashes(folder) == whole
    assert {path.name for path in folder.iterdir()} == {*whole, "nano-llama.manifest.json"}
