"""A job's inputs by content: the part of the manifest that proves where files come from."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minitron_engine.library import LLAMA_CPP_COMMIT
from minitron_quant.quantize.job import Batch, Target
from minitron_quant.quantize.journal import file_sha256, fingerprint


@dataclass(frozen=True)
class Identity:
    """Versions, the source's files and the importance matrix, with their hashes."""

    document: dict[str, Any]

    def fingerprint(self, target: Target) -> str:
        """One hash over everything that a level is made from."""
        hashes = [entry["sha256"] for entry in self.document["source"]]
        imatrix, covariance = self.document["imatrix"], self.document.get("covariance")
        more = [covariance["sha256"]] if covariance else []
        return fingerprint(target.recipe, *hashes, imatrix["sha256"] if imatrix else "", *more)


def identify(batch: Batch, manifest: dict[str, Any]) -> Identity:
    """Hash the inputs; a file of the size and time that the manifest has is not read again."""
    known = {
        (entry["name"], entry["bytes"], entry["modified_ns"]): entry["sha256"]
        for entry in manifest.get("source", [])
    }
    source = []
    for shard in batch.shards:
        stat = shard.path.stat()
        key = (shard.path.name, stat.st_size, stat.st_mtime_ns)
        sha256 = known.get(key) or file_sha256(shard.path)
        source.append(dict(zip(("name", "bytes", "modified_ns"), key, strict=True), sha256=sha256))
    document: dict[str, Any] = {
        "versions": {
            "minitron": version("minitron"),
            "llama_cpp_python": version("llama_cpp_python"),
            "llama_cpp_commit": LLAMA_CPP_COMMIT,
        },
        "source": source,
        "imatrix": _named(batch.settings.imatrix),
    }
    if batch.settings.covariance is not None:
        document["covariance"] = _named(batch.settings.covariance)
    return Identity(document)


def _named(path: Path | None) -> dict[str, str] | None:
    return None if path is None else {"name": path.name, "sha256": file_sha256(path)}
