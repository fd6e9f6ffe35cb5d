"""A job on a Dask cluster: a scheduler and two workers on this machine, results as here."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES
from minitron_cli.pipeline import executors
from minitron_cli.pipeline.executors import open_executor
from minitron_convert.convert import ConvertSettings
from minitron_core.errors import Damaged, Denied, MinitronError, Usage
from minitron_quant.chunking import ChunkSettings
from minitron_quant.perplexity.settings import MeasureSettings

distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

JOB = f"""
[model]
source = "{EXAMPLES}/nano-nemotron"
outtype = "f16"
[quantize]
levels = ["q4_0", "q8_0"]
[measure]
text = "{EXAMPLES}/held-out.txt"
ctx = 128
chunks = 3
divergence = true
[output]
directory = "NAME"
report = ["json"]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a scheduler with two worker processes."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address.removeprefix("tcp://")


def test_cluster_gives_the_same_files_and_table(
    cluster: str, tmp_path: Path, minitron: Any
) -> None:
    tables = []
    for name, more in (("here", ()), ("there", ("--executor", f"dask://{cluster}"))):
        job = tmp_path / f"{name}.toml"
        job.write_text(JOB.replace("NAME", name))
        ran = minitron("run", job, "-q", "--json", *more)
        assert ran.code == 0, ran.err
        tables.append(json.loads((tmp_path / name / "report.json").read_text())["rows"])
    here, there = tables
    assert [row["level"] for row in here] == ["Q4_0", "Q8_0", "F16"]
    assert here == there
    files = [
        sorted(path.name for path in (tmp_path / name).glob("*.gguf")) for name in ("here", "there")
    ]
    assert files[0] == files[1]
    for name in files[0]:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_cluster_reports_a_failure_of_a_worker(cluster: str, tmp_path: Path, minitron: Any) -> None:
    job = tmp_path / "job.toml"
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    job.write_text(JOB.replace("NAME", "out").replace(f"{EXAMPLES}/held-out.txt", str(short)))
    ran = minitron("run", job, "-q", "--executor", f"dask://{cluster}")
    assert ran.code == 2
    assert "two chunks" in ran.err and "Traceback" not in ran.err


def test_cluster_keeps_the_rows_beside_a_failure(
    cluster: str, nano_llama: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(nano_llama.read_bytes()[:5000])
    settings = MeasureSettings(
        (damaged, nano_llama), EXAMPLES / "held-out.txt", ChunkSettings(64, 64, 2, 1)
    )
    found: list[str] = []
    with open_executor(f"dask://{cluster}") as place, pytest.raises(Damaged, match="damaged"):
        for row in place.measure(settings, lambda event: None):
            found.append(row.model)
    assert found == [nano_llama.name]


@pytest.mark.parametrize("stage", ["convert", "measure"])
def test_cluster_explains_unknown_errors(stage: str) -> None:
    class Client:
        def submit(self, *_given: Any, **_more: Any) -> Any:
            future: Future[Any] = Future()
            future.set_exception(KeyError("the worker was lost"))
            return future

        def cancel(self, _futures: Any) -> None: ...

    place = executors.Cluster(Client())  # type: ignore[arg-type]
    with pytest.raises(MinitronError, match="a Dask worker failed: KeyError"):
        if stage == "convert":
            place.convert(ConvertSettings(EXAMPLES / "nano-llama"), lambda event: None)
        else:
            settings = MeasureSettings((Path("a.gguf"),), Path("text"), ChunkSettings())
            list(place.measure(settings, lambda event: None))


def test_open_executor_refuses_other_versions(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = executors.versions
    monkeypatch.setattr(executors, "_refuse_other_versions", lambda client: None)
    with open_executor(f"dask://{cluster}") as place:
        assert isinstance(place, executors.Cluster)
        monkeypatch.undo()
        client = place._client
        monkeypatch.setattr(executors, "versions", lambda: {**there(), "minitron": "9"})
        with pytest.raises(MinitronError, match="has minitron"):
            executors._refuse_other_versions(Fixed(client, there))


class Fixed:
    """A client whose workers answer with the versions of this machine."""

    def __init__(self, client: Any, versions: Any) -> None:
        self._client, self._versions = client, versions

    def run(self, _function: Any) -> Any:
        return self._client.run(self._versions)


def test_open_executor_explains_wrong_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_WAIT_S", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"dask://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Denied, match="no Dask scheduler"), open_executor(address):
        pass
    with pytest.raises(Usage, match="not an executor"), open_executor("ray://x:1"):
        pass
