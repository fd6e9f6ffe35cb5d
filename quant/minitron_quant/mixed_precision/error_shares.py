"""The share of an encoding error that independent GPTQ leaves, by tensor and type.

Cross-validation takes minutes for a model of 135 million weights, and every size that is solved
needs the shares, and the dampings of its codes: they are kept in a file beside the covariance.
"""

import contextlib
from pathlib import Path

from minitron_core.atomic_files import read_checksummed, write_checksummed
from minitron_core.errors import MinitronError
from minitron_core.gguf import TYPE
from minitron_quant.gptq.encoder import GptqEncoder

_FORMAT = 2  # raised where codes come out differently


class ErrorShares:
    """The shares of one covariance; what an earlier run measured is read, dampings too."""

    def __init__(self, gptq: GptqEncoder, path: Path) -> None:
        self._gptq, self._path = gptq, path
        self._origin = {"format": _FORMAT, "covariance": gptq.made_from}
        self._shares = self._read()
        self._changed = False

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            document = read_checksummed(self._path)
        except (OSError, ValueError):
            return {}
        shares: dict[str, dict[str, float]] = document.pop("shares", {})
        dampings: dict[str, float | None] = document.pop("dampings", {})
        if document != self._origin:
            return {}
        self._gptq.dampings.update(dampings)
        return shares

    def of(self, name: str, ggml_type: int) -> float:
        """The error of a tensor in a type over that of ggml's codes; 1 where GPTQ is not used."""
        known, kind = self._shares.setdefault(name, {}), TYPE[ggml_type].name
        if kind not in known:
            known[kind], self._changed = self._gptq.gain(name, ggml_type), True
        return known[kind]

    def keep(self) -> None:
        """Write what was measured since the last call; skipped where the folder is not writable."""
        if self._changed:
            with contextlib.suppress(MinitronError):
                found = {"shares": self._shares, "dampings": self._gptq.dampings}
                write_checksummed(self._path, self._origin | found)
            self._changed = False
