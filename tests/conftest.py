"""What the tests of all packages share: the bundled models, converted and quantized once."""

# first: numpy reads what it sets when it is loaded, and most tests load numpy before the engine
import minitron_engine  # noqa: F401

# isort: split

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from helpers.python_server import PythonServer
from helpers.support import EXAMPLES, RECORDED, Ran, made_once, quantize
from minitron_cli.main import main
from minitron_convert.convert import ConvertSettings, convert
from minitron_core import cpu_limits
from minitron_core.gguf import GgufWriter, KeyValue, TensorSpec, ValueType, open_gguf
from minitron_quant import decode_forecast
from minitron_quant.gptq import forecast as gptq_forecast
from minitron_quant.quantize.run import LevelResult

# a job of a shell's background begins with Ctrl-C ignored, nohup's with a hang-up, and so would
# all that tests start: what has a handler here is as ever there
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
# on a slow machine any command may take the two seconds after which it shows its progress
os.environ["MINITRON_PROGRESS"] = "none"
# the processes of `pytest -n` share the processors: threads that wait for each other gain nothing
_SHARE = cpu_limits.default_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
cpu_limits._cgroup_quota = lambda: _SHARE
# how long an input takes says more about the machine's other work
hypothesis.settings.register_profile(
    "no deadline", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forecasts for a processor of a known speed: what is measured depends on its other work."""
    for module in (decode_forecast, gptq_forecast):
        for measured in ("llama_cpp_operations_per_second", "blas_operations_per_second"):
            monkeypatch.setattr(module, measured, lambda: 1e9)


@pytest.fixture(scope="session")
def nano_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/nano-llama as an F16 file."""
    path = tmp_path_factory.mktemp("nano-llama") / "nano-llama-F16.gguf"
    convert(ConvertSettings(EXAMPLES / "nano-llama", path, outtype="f16"))
    return path


@pytest.fixture(scope="session")
def short_llama(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano-llama's first two blocks: all of its shapes for less than half of the work."""
    file = open_gguf(nano_llama)
    entries = dict(file.metadata)
    entries["llama.block_count"] = KeyValue.of("llama.block_count", ValueType.UINT32, 2)
    kept = [i for i in file.tensors if not i.name.startswith(("blk.2", "blk.3", "blk.4", "blk.5"))]
    path = tmp_path_factory.mktemp("short-llama") / nano_llama.name
    specs = [TensorSpec(info.name, info.shape, info.type) for info in kept]
    with GgufWriter(path, [*entries.values()], specs) as writer:
        for info in kept:
            writer.write(file.data(info))
    return path


@pytest.fixture(scope="session")
def nano_nemotron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/nano-nemotron as an F16 file, without the key that llama.cpp's converter omits."""
    folder = tmp_path_factory.mktemp("nano-nemotron")
    ours = folder / "ours.gguf"
    convert(ConvertSettings(EXAMPLES / "nano-nemotron", ours, outtype="f16"))
    file = open_gguf(ours)
    metadata = [
        entry for key, entry in file.metadata.items() if key != "tokenizer.ggml.add_space_prefix"
    ]
    specs = [TensorSpec(info.name, info.shape, info.type) for info in file.tensors]
    path = folder / "nano-nemotron-F16.gguf"
    with GgufWriter(path, metadata, specs) as writer:
        for info in file.tensors:
            writer.write(file.data(info))
    return path


@pytest.fixture(scope="session")
def llama_levels(
    nano_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, LevelResult]:
    """All levels of nano-llama with the recorded importance matrix."""
    imatrix = RECORDED / "nano-llama.imatrix.gguf"
    return made_once(
        tmp_path_factory.getbasetemp() / "llama-levels",
        lambda folder: quantize(nano_llama, folder, "all", imatrix=imatrix),
    )


@pytest.fixture(scope="session")
def nemotron_levels(
    nano_nemotron: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, LevelResult]:
    """All levels of nano-nemotron with the recorded importance matrix."""
    imatrix = RECORDED / "nano-nemotron.imatrix.gguf"
    return made_once(
        tmp_path_factory.getbasetemp() / "nemotron-levels",
        lambda folder: quantize(nano_nemotron, folder, "all", imatrix=imatrix),
    )


@pytest.fixture(scope="session")
def python() -> Iterator[PythonServer]:
    """Runs programs in processes of their own, each with an environment for huggingface_hub."""
    server = PythonServer()
    yield server
    server.close()


def end_logging() -> None:
    """Undo --verbose, which logs to the stream of one test."""
    logger = logging.getLogger("minitron")
    logger.setLevel(logging.NOTSET)
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    yield
    end_logging()


@pytest.fixture
def minitron(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process, as the console script does."""

    def run(*arguments: object, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "argv", ["minitron", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.setenv("COLUMNS", "120")
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 0
        end_logging()
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
