"""A job's inputs by content: the part of the manifest that proves where files come from."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minitron_core.hashing import file_sha256, fingerprint
from minitron_engine.llama.library import LLAMA_CPP_COMMIT
from minitron_quant.quantize.prepare import Batch, Target


@dataclass(frozen=True)
class Identity:
    """Versions, the source's files and the importance matrix, with their hashes.

    The source is hashed while its weights are encoded: who needs the hash waits until it is there.
    """

    known: dict[str, Any]
    source: tuple[tuple[dict[str, Any], Future[str]], ...]

    @cached_property
    def document(self) -> dict[str, Any]:
        """The manifest's part about the inputs."""
        source = [{**entry, "sha256": sha256.result()} for entry, sha256 in self.source]
        return {**self.known, "source": source}

    def fingerprint(self, target: Target) -> str:
        """One hash over everything that a level is made from."""
        hashes = [entry["sha256"] for entry in self.document["source"]]
        imatrix, covariance = self.known["imatrix"], self.known.get("covariance")
        more = [covariance["sha256"]] if covariance else []
        return fingerprint(target.recipe, *hashes, imatrix["sha256"] if imatrix else "", *more)


@contextmanager
def identified(batch: Batch) -> Iterator[Identity]:
    """Hash the inputs; at the end of the block what is not hashed yet is given up."""
    document: dict[str, Any] = {
        "versions": {
            "minitron": version("minitron"),
            "llama_cpp_python": version("llama_cpp_python"),
            "llama_cpp_commit": LLAMA_CPP_COMMIT,
        },
        "imatrix": _named(batch.settings.imatrix),
    }
    if batch.settings.covariance is not None:
        document["covariance"] = _named(batch.settings.covariance)
    given_up = threading.Event()
    source = []
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        for shard in batch.shards:
            entry = {"name": shard.path.name, "bytes": shard.path.stat().st_size}
            source.append((entry, pool.submit(file_sha256, shard.path, given_up)))
        try:
            yield Identity(document, tuple(source))
        finally:
            given_up.set()


def _named(path: Path | None) -> dict[str, str] | None:
    return None if path is None else {"name": path.name, "sha256": file_sha256(path)}
