"""Where a job converts and measures: in this process, or on the workers of a Dask cluster.

Workers must see the job's files under the same paths, and have minitron and llama.cpp installed as
here. A row measured there is the row measured here: the same function on the same files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from minitron_cli.doctor import versions
from minitron_cli.errors import explain
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import Denied, MinitronError, Usage
from minitron_core.progress import Event, Progress
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import measure

if TYPE_CHECKING:
    from distributed import Client

_SCHEME = "dask://"
_WAIT_S = 15


class Executor(Protocol):
    """Runs a conversion, and the measurements of a job's files."""

    def convert(self, settings: ConvertSettings, listener: Progress) -> Path: ...
    def measure(self, settings: MeasureSettings, listener: Progress) -> Iterator[Row]: ...


class Here:
    """This process, one thing after the other."""

    def convert(self, settings: ConvertSettings, listener: Progress) -> Path:
        """Write the file. Errors: those of minitron_convert.convert."""
        return convert(settings, listener).paths[0]

    def measure(self, settings: MeasureSettings, listener: Progress) -> Iterator[Row]:
        """Rows in order. Errors: those of minitron_quant.perplexity.table."""
        return measure(settings, listener)


class Cluster:
    """The workers of a Dask cluster: every model is measured on its own, beside the reference."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def convert(self, settings: ConvertSettings, listener: Progress) -> Path:
        """As here, on a worker. Errors: also MinitronError where a worker is lost."""
        with _worker_errors():
            path: Path = self._client.submit(_convert, settings, pure=False).result()
        return path

    def measure(self, settings: MeasureSettings, listener: Progress) -> Iterator[Row]:
        """As here, each model on a worker; rows come in the same order, as they are done.

        A model that fails costs no other its row: the first error is raised after the last row.
        """
        alone = [replace(settings, models=(path,), state=None) for path in settings.paths]
        futures = [self._client.submit(_measure, each, pure=False) for each in alone]
        first: Exception | None = None
        listener(Event("perplexity", 0, len(futures), "models"))
        try:
            for done, future in enumerate(futures, 1):
                try:
                    with _worker_errors():
                        row: Row = future.result()
                except Exception as error:
                    first = first or error
                    continue
                listener(Event("perplexity", done, len(futures), "models", row.model))
                yield row
        finally:
            self._client.cancel(futures)  # type: ignore[no-untyped-call]
        if first is not None:
            raise first


@contextmanager
def _worker_errors() -> Iterator[None]:
    """What the cluster itself raises becomes a MinitronError, so that rows measured are kept."""
    try:
        yield
    except Exception as error:
        if explain(error) is not None:
            raise
        raise MinitronError(
            f"a Dask worker failed: {type(error).__name__}: {error}", "see the worker's log"
        ) from error


def _convert(settings: ConvertSettings) -> Path:
    return convert(settings).paths[0]


def _measure(settings: MeasureSettings) -> Row:
    # the reference's row comes first, the model's last; they are one if it is measured itself
    return list(measure(settings))[-1]


@contextmanager
def open_executor(address: str | None) -> Iterator[Executor]:
    """This process, or the cluster at dask://HOST:PORT, left at the end of the block.

    Usage: another kind of address; Denied: nobody answers; MinitronError: other versions there.
    """
    if address is None:
        yield Here()
        return
    if not address.startswith(_SCHEME):
        raise Usage(f"{address} is not an executor", "write dask://HOST:PORT")
    with _client(address.removeprefix(_SCHEME)) as client:
        _refuse_other_versions(client)
        yield Cluster(client)


@contextmanager
def _client(address: str) -> Iterator["Client"]:
    try:
        from distributed import Client
    except ImportError as error:
        raise MinitronError(
            "a Dask cluster needs the package distributed", "pip install 'minitron[cluster]'"
        ) from error
    try:
        client = Client(f"tcp://{address}", timeout=_WAIT_S)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise Denied(
            f"no Dask scheduler answers at {address}", "start one with: dask scheduler"
        ) from error
    with client:
        yield client


def _refuse_other_versions(client: "Client") -> None:
    found: dict[str, Any] = client.run(versions)
    if not found:
        raise MinitronError("the Dask cluster has no workers", "start some: dask worker HOST:PORT")
    here = versions()
    for worker, there in found.items():
        other = [name for name in here if there.get(name) != here[name] and name != "python"]
        if other:
            raise MinitronError(
                f"{worker} has {other[0]} {there.get(other[0])}, this machine {here[other[0]]}",
                "results are the same only with the same versions",
            )
