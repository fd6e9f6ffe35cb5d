"""The codes that GPTQ gives mixes: what they cost, how they are made, how far they will diverge.

Costs come from a covariance, whichever codes the files get. Divergences are predicted by a file
with codes of the same kind, fitted to one half of the text and measured on the other.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from minitron_core.atomic_files import write_whole
from minitron_core.errors import Usage
from minitron_core.gguf import KeyValue
from minitron_core.hashing import fingerprint
from minitron_core.progress import Event, Progress
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.gptq.estimate import Method
from minitron_quant.gptq.sequential_levels import SequentialLevels, SequentialSettings
from minitron_quant.mixed_precision.error_shares import ErrorShares
from minitron_quant.mixed_precision.predict_kld import measure_kld, with_gptq
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity
from minitron_quant.model_files import open_model_files
from minitron_quant.perplexity.held_out import read_stored
from minitron_quant.quantize.prepare import QuantizeJob, QuantizeSettings, folder_of, model_name
from minitron_quant.quantize.recipe import Recipe
from minitron_quant.quantize.run import run

_FIRST_HALF = (0,)


class MixCodes:
    """GPTQ for the mixes of one model.

    independent: of the covariance. method: what the files are made with.
    """

    def __init__(
        self,
        quantize: QuantizeSettings,
        covariance: Path,
        sequential: SequentialSettings | None,
        progress: Progress,
    ) -> None:
        """Raises Damaged for a covariance of another model, Usage for one of another text."""
        self._quantize, self._settings, self._progress = quantize, sequential, progress
        self.independent = GptqEncoder(covariance, open_model_files(quantize.source))
        self._sequential = None if sequential is None else SequentialLevels(quantize, sequential)
        self.method: Method = "independent" if sequential is None else sequential.method
        if self._sequential is not None:
            _check_text(self._sequential, self.independent, covariance)

    @property
    def keys(self) -> tuple[KeyValue, ...]:
        """The metadata that records how the codes are chosen."""
        return (self._sequential or self.independent).keys

    @property
    def texts(self) -> tuple[str, ...]:
        """The SHA-256 of every calibration text."""
        return self.independent.texts

    @property
    def made_from(self) -> str:
        """A hash over all that the codes depend on besides the model and the types."""
        return (self._sequential or self.independent).made_from

    @property
    def notes(self) -> tuple[str, ...]:
        """A warning if the text is short for the width of the inputs."""
        return (self._sequential or self.independent).notes

    def job(self, settings: QuantizeSettings) -> QuantizeJob:
        """A quantization with the codes of the files."""
        return (self._sequential or self.independent).job(settings)

    def priced(self, sensitivity: Sensitivity) -> Sensitivity:
        """The sensitivity with the share of every cost that independent codes leave.

        Shares are kept in {Model}.gptq-shares.json beside the covariance, for the next size.
        """
        name = f"{model_name(self._quantize.source)}.gptq-shares.json"
        shares = ErrorShares(self.independent, self.independent.file.with_name(name))
        return with_gptq(sensitivity, shares, self._progress)

    def predict(
        self, recipe: Recipe, sensitivity: Sensitivity, method: Method | None = None
    ) -> float:
        """The predicted divergence of a recipe's file, in nats per token.

        It is kept in {Model}.predictions.json, and a second call reads it there.
        """
        method = method or self.method
        path = folder_of(self._quantize) / f"{model_name(self._quantize.source)}.predictions.json"
        known: dict[str, Any] = read_stored(path, dict) or {}
        made_from = self._made_from(recipe, sensitivity, method)
        stored = read_stored(path, lambda found: float(found[made_from]["predicted_kld"]))
        if stored is not None and self._quantize.replace != "always":
            return stored
        predicted = self._predict(recipe, method)
        known[made_from] = {"mix": recipe.name, "gptq": method, "predicted_kld": predicted}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(known, indent=1) + "\n")
        return predicted

    def _made_from(self, recipe: Recipe, sensitivity: Sensitivity, method: Method) -> str:
        sequential = None if method == "independent" else self._sequential
        hashes = (self.independent.made_from, sequential.made_from if sequential else "")
        imatrix = sensitivity.imatrix["sha256"]
        return fingerprint(method, sensitivity.model["sha256"], imatrix, *hashes, recipe.text)

    def _predict(self, recipe: Recipe, method: Method) -> float:
        """Make the file on the first half of the text, measure it on chunks of the second.

        A run that was stopped continues with the same call.
        """
        quantize = self._quantize
        scratch = folder_of(quantize) / f".{model_name(quantize.source)}.prediction"
        there = replace(quantize, levels=(recipe,), directory=scratch, replace="outdated")

        def listen(event: Event) -> None:
            note = event.note and f"to predict the divergence: {event.note}"
            self._progress(replace(event, stage="prediction", note=note))

        (made,) = run(self._half_job(there, method), listen)
        predicted = measure_kld(quantize.loading, made.path, self.independent, quantize.threads)
        shutil.rmtree(scratch, ignore_errors=True)
        return predicted

    def _half_job(self, settings: QuantizeSettings, method: Method) -> QuantizeJob:
        """A quantization with codes that are fitted to the first half of the text."""
        if method == "independent":
            return self.independent.fitted_to(_FIRST_HALF).job(settings)
        assert self._settings is not None
        origin = self.independent.covariance.origin
        half = replace(self._settings.chunks, limit=origin.tokens[0] // origin.context)
        return SequentialLevels(settings, replace(self._settings, chunks=half)).job(settings)


def _check_text(sequential: SequentialLevels, independent: GptqEncoder, file: Path) -> None:
    """Usage where the covariance is of another text: prediction would be no test of the codes."""
    origin, document = independent.covariance.origin, sequential.document
    theirs = origin.texts, origin.context, sum(origin.tokens)
    if (sequential.texts, document["context"], document["tokens"]) != theirs:
        raise Usage(
            f"{file.name} was collected on another text than sequential GPTQ calibrates on",
            "collect it on the same text, and as many chunks",
        )
