"""Probe every tensor on some chunks before any is probed on more, so that a run can stop any time.

What a time budget leaves out is estimated from the same tensors of other layers.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron_core.gguf.layers import in_layer, layer_number
from minitron_core.progress import Event, Progress
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.mixed_precision.probe import Prober, probe_of
from minitron_quant.mixed_precision.sensitivity_file import (
    Sensitivity,
    TensorSensitivity,
    write_sensitivity,
)
from minitron_quant.model_files import Tensors

# the first chunk of every tensor tells most; later rounds measure several per replacement
ROUND = 4
_SAVE_SECONDS = 2.0


@dataclass(frozen=True)
class MeasurementRounds:
    """The measuring of all tensors, whose results go into a sensitivity and its file, `output`."""

    output: Path
    sensitivity: Sensitivity
    tensors: Tensors
    prober: Prober
    progress: Progress

    def measure(self, chunks: Tokens, until: float = math.inf) -> None:
        """Continue after each tensor's last chunk.

        until: a time of time.monotonic(). What is not measured by then is estimated, but for one
        tensor of each kind.
        """
        total = len(chunks) * sum(name in self.prober for name in self.tensors)
        self.progress(Event("sensitivity", self._done, total, "measurements"))
        try:
            self._measure(chunks, total, until)
        except KeyboardInterrupt as interrupt:
            write_sensitivity(self.output, self.sensitivity)
            kept = f"{self._done} of {total} measurements are kept in {self.output}"
            interrupt.add_note(kept)
            raise

    def _measure(self, chunks: Tokens, total: int, until: float) -> None:
        saved = time.monotonic()
        while (first := self.sensitivity.chunks) < len(chunks):
            part = chunks[first : first + (ROUND if first else 1)]
            started = time.monotonic()
            reference = self.prober.reference(part)
            if not first:
                self._warn(time.monotonic() - started, until)
            for name in self._measured_on(first):
                if time.monotonic() > until and self._is_known(name):
                    self._estimate()
                    return
                probe = probe_of(self.sensitivity.tensors[name].costs)
                self._measured[name].extend(
                    self.prober.divergences(*self.tensors[name], probe, part, reference)
                )
                self.progress(Event("sensitivity", self._done, total, "measurements", name))
                if time.monotonic() - saved > _SAVE_SECONDS:
                    write_sensitivity(self.output, self.sensitivity)
                    saved = time.monotonic()
            self._fill_in(first, len(part))

    def _warn(self, seconds: float, until: float) -> None:
        """Say so if the least that is measured takes longer than is left; seconds: of one pass."""
        kinds = {_kind(name) for name in self._measured_on(0) if not self._is_known(name)}
        if time.monotonic() + len(kinds) * seconds > until:
            minutes = math.ceil(len(kinds) * seconds / 60)
            note = (
                f"one measurement for each of {len(kinds)} kinds of tensors takes about {minutes} "
                "min, longer than the time budget leaves: all else is estimated from them"
            )
            self.progress(Event("sensitivity", note=note))

    def _is_known(self, name: str) -> bool:
        """Whether a tensor of the same kind was measured."""
        return any(found for key, found in self._measured.items() if _kind(key) == _kind(name))

    def _estimate(self) -> None:
        """Fill in what the first chunk lacks, and say so."""
        missing = self._measured_on(0)
        self._fill_in(0, 1)
        for name in missing:
            self.sensitivity.tensors[name].estimated = True
        if missing:
            note = (
                f"the time budget ended before {len(missing)} of {len(self.tensors)} tensors were "
                "measured: they are estimated from other layers; --resume with more time goes on"
            )
            self.progress(Event("sensitivity", note=note))

    def _fill_in(self, first: int, count: int) -> None:
        """Take unmeasured tensors for as sensitive to errors as their kind in the layers around.

        Such are the layers that predict further tokens, which llama.cpp leaves out.
        """
        tensors, measured = self.sensitivity.tensors, self._measured
        held = [name for name, found in measured.items() if len(found) > first]
        for name, found in measured.items():
            if name in held:
                continue
            same = sorted((each for each in held if _kind(each) == _kind(name)), key=_layer)
            for chunk in range(first, first + count):
                alphas = [_alpha(tensors[each], chunk) for each in same or held]
                alpha = (
                    np.interp(_layer(name), [*map(_layer, same)], alphas)
                    if same
                    else np.mean(alphas)
                )
                found.append(float(alpha) * tensors[name].probe_cost)

    @property
    def _done(self) -> int:
        return sum(len(found) for name, found in self._measured.items() if name in self.prober)

    @property
    def _measured(self) -> dict[str, list[float]]:
        return {name: self.sensitivity.tensors[name].divergences for name in self.tensors}

    def _measured_on(self, chunks: int) -> list[str]:
        """Tensors measured on so many chunks; layers in an order that spreads ever more finely."""
        found = self._measured
        names = [name for name in found if len(found[name]) == chunks and name in self.prober]
        return sorted(names, key=_spread)


def _alpha(tensor: TensorSensitivity, chunk: int) -> float:
    """Divergence per cost on one chunk."""
    return tensor.divergences[chunk] / tensor.probe_cost if tensor.probe_cost > 0 else 0.0


def _layer(name: str) -> int:
    """The number of a tensor's layer; -1 outside of layers."""
    number = layer_number(name)
    return -1 if number is None else number


def _spread(name: str) -> int:
    """The bits of the layer's number in reverse: 0, half of the layers, a quarter, …"""
    return int(f"{_layer(name):016b}"[::-1], 2) if _layer(name) >= 0 else -1


def _kind(name: str) -> str:
    """A tensor's name without the number of its layer."""
    return in_layer(name, "*")
