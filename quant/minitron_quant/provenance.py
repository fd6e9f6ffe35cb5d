"""Provenance: what files were made from, by content, so that one of another model is noticed."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minitron_core.hashing import file_sha256, fingerprint, model_fingerprint
from minitron_core.versions import installed_version
from minitron_engine.llama.library import LLAMA_CPP_COMMIT
from minitron_quant.model_files import open_model_files


@dataclass(frozen=True)
class CalibrationOrigin:
    """The model and the texts that statistics were collected with.

    model: `model_fingerprint`, the same for the model's file of any type. texts: SHA-256 of each.
    """

    model: str
    texts: tuple[str, ...]


def calibration_origin(model: Path, texts: Sequence[Path]) -> CalibrationOrigin:
    """The origin of statistics collected with these files."""
    hashes = tuple(map(file_sha256, texts))
    return CalibrationOrigin(model_fingerprint(open_model_files(model)), hashes)


def named_sha256(path: Path) -> dict[str, str]:
    """A file's name and SHA-256, as manifests record them."""
    return {"name": path.name, "sha256": file_sha256(path)}


@dataclass(frozen=True)
class InputHashes:
    """The inputs of a quantization by content: versions, source, importance matrix, covariance.

    The source is hashed while its weights are encoded; reading its hashes waits for them.
    """

    known: dict[str, Any]
    source: tuple[tuple[dict[str, Any], Future[str]], ...]

    @cached_property
    def document(self) -> dict[str, Any]:
        """The manifest's part about the inputs."""
        source = [{**entry, "sha256": sha256.result()} for entry, sha256 in self.source]
        return {**self.known, "source": source}

    def fingerprint(self, recipe: str) -> str:
        """One hash over the inputs and a recipe, which is a hash over everything else."""
        hashes = [entry["sha256"] for entry in self.document["source"]]
        imatrix, covariance = self.known["imatrix"], self.known.get("covariance")
        more = [covariance["sha256"]] if covariance else []
        return fingerprint(recipe, *hashes, imatrix["sha256"] if imatrix else "", *more)

    def known_within(self, seconds: float) -> bool:
        """Whether all hashes are there, after waiting for so long."""
        return not wait([sha256 for _, sha256 in self.source], seconds).not_done


@contextmanager
def hash_inputs(
    files: Sequence[Path], imatrix: Path | None, covariance: Path | None
) -> Iterator[InputHashes]:
    """Hash the inputs in the background; the end of the block cancels what is left."""
    known: dict[str, Any] = {
        "versions": {
            "minitron": installed_version("minitron"),
            "llama_cpp_python": installed_version("llama_cpp_python"),
            "llama_cpp_commit": LLAMA_CPP_COMMIT,
        },
        "imatrix": None if imatrix is None else named_sha256(imatrix),
    }
    if covariance is not None:
        known["covariance"] = named_sha256(covariance)
    cancelled = threading.Event()
    source = []
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        for path in files:
            entry = {"name": path.name, "bytes": path.stat().st_size}
            source.append((entry, pool.submit(file_sha256, path, cancelled)))
        try:
            yield InputHashes(known, tuple(source))
        finally:
            cancelled.set()
