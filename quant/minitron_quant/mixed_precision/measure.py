"""A model's sensitivity: the moments of inputs, the costs of types, the effect of errors."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minitron_core.cpu_limits import default_threads
from minitron_core.errors import Damaged
from minitron_core.gguf import TYPE, Gguf
from minitron_core.hashing import file_sha256, fingerprint, model_fingerprint
from minitron_core.progress import Progress, ignore
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import EVERY_GPU, GpuLayers, ModelSettings, Placement
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.loading import open_model
from minitron_quant.array_backend import Doubles
from minitron_quant.chunking import ChunkSettings, chunk_text, read_text
from minitron_quant.imatrix.collect import CollectSettings
from minitron_quant.imatrix.files import read_imatrix, write_imatrix
from minitron_quant.imatrix.matrix import ImportanceMatrix
from minitron_quant.levels import level_named
from minitron_quant.mixed_precision.activation_quantization import (
    rounding_costs,
    rounding_noise,
)
from minitron_quant.mixed_precision.costs import CostInputs, InputMoments, sampled_tasks, type_costs
from minitron_quant.mixed_precision.importance import complete
from minitron_quant.mixed_precision.measurement_rounds import ROUND, MeasurementRounds
from minitron_quant.mixed_precision.probe import PROBES, open_prober, probe_of
from minitron_quant.mixed_precision.sensitivity_file import (
    Sensitivity,
    TensorSensitivity,
    read_sensitivity,
    write_sensitivity,
)
from minitron_quant.model_files import Tensors, open_model_files
from minitron_quant.provenance import named_sha256
from minitron_quant.quantize.importance import Importance, match_importance
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.plan import make_plan

DEFAULT_TOKENS = 2048


@dataclass(frozen=True)
class SensitivitySettings:
    """What to measure. tokens: for every tensor, None for the whole text; budget: seconds.

    output: the file to write. The importance matrix goes beside it: the one given, or one made of
    the text, completed with entries for the output and the embedding.
    """

    model: Path
    text: Path
    output: Path
    imatrix: Path | None = None
    tokens: int | None = DEFAULT_TOKENS
    budget: float | None = None
    chunks: ChunkSettings = ChunkSettings(n_batch=512)
    gpu_layers: GpuLayers = "auto"
    resume: bool = False
    placement: Placement = EVERY_GPU

    @property
    def imatrix_output(self) -> Path:
        """Where the completed importance matrix goes."""
        return self.output.with_name(f"{self.output.name.removesuffix('.json')}.imatrix.gguf")


def measure_sensitivity(settings: SensitivitySettings, progress: Progress = ignore) -> Sensitivity:
    """Measure; write the file every few seconds.

    Raises Usage for a text that is too short, Damaged for an importance matrix of another model.
    """
    until = time.monotonic() + settings.budget if settings.budget else float("inf")
    shards = open_model_files(settings.model)
    known = _resumed(settings, shards)
    tensors = quantizable(shards)
    context = settings.chunks.context()
    load = ModelSettings(
        settings.model,
        settings.gpu_layers,
        placement=settings.placement,
        replaceable=True,
        context=context,
    )
    with open_model(load) as model:
        chunks = chunk_text(model, read_text(settings.text), settings.chunks, settings.text.name)
        if known is None:
            matrix = _importance(settings, shards, model, tensors, progress)
            write_imatrix(settings.imatrix_output, matrix)
        matrix = read_imatrix(settings.imatrix_output)
        inputs = _cost_inputs(matrix, tensors, chunks, model.n_vocab)
        order = np.random.default_rng(0).permutation(len(chunks))
        if known is None:
            # a pass of a large model takes most of a minute, and one chunk has 512 peaks a block
            some = chunks[order[: 1 if settings.budget else ROUND]]
            noise = rounding_noise(model, some, settings.chunks, progress)
            known = _begun(settings, shards, inputs, noise, progress)
        sensitivity = known
        sensitivity.device = model.device
        tokens = chunks.size if settings.tokens is None else settings.tokens
        count = max(1, tokens // settings.chunks.n_ctx)
        with open_prober(model, settings.chunks, inputs.weights) as prober:
            rounds = MeasurementRounds(settings.output, sensitivity, tensors, prober, progress)
            rounds.measure(chunks[order[:count]], until)
    sensitivity.complete = True
    write_sensitivity(settings.output, sensitivity)
    return sensitivity


def _cost_inputs(
    matrix: ImportanceMatrix, tensors: Tensors, chunks: Tokens, n_vocab: int
) -> CostInputs:
    infos = {name: info for name, (_, info) in tensors.items()}
    weights = match_importance(Importance(matrix.weights(), ()), infos, [])
    inputs = {name: InputMoments.of(w, matrix.entries[name].mean()) for name, w in weights.items()}
    frequency = np.bincount(chunks.reshape(-1), minlength=n_vocab).astype(np.float64)
    return CostInputs(tensors, weights, inputs, frequency)


def quantizable(shards: list[Gguf]) -> Tensors:
    """The tensors that llama.cpp quantizes, in the order of a quantized file."""
    plan = make_plan(shards, [level_named("Q8_0")], QuantizeOptions(), imatrix=False)
    return {
        name: plan.tensors[name]
        for name, ggml_type in plan.levels[0].types.items()
        # F16 stands for rows that fit no block
        if ggml_type != plan.tensors[name][1].type and TYPE[ggml_type].block_elements > 1
    }


def _resumed(settings: SensitivitySettings, shards: list[Gguf]) -> Sensitivity | None:
    """The measurements of an earlier run to resume; Damaged if they do not match."""
    if not (settings.resume and settings.output.is_file()):
        return None
    known = read_sensitivity(settings.output)
    check_model(known, shards, settings.output)
    for tensor in known.tensors.values():
        if tensor.estimated:
            tensor.divergences, tensor.estimated = [], False
    asked = file_sha256(settings.text), settings.chunks.n_ctx, TYPE[PROBES[0]].name
    if (known.text["sha256"], known.ctx, known.probe) != asked:
        raise Damaged(
            f"{settings.output} was measured on another text, or with another --ctx or probe",
            "--force measures again",
        )
    if settings.imatrix and not known.used_imatrix(settings.imatrix):
        raise Damaged(
            f"{settings.output} was measured with another importance matrix",
            "--force measures again",
        )
    return known


def check_model(sensitivity: Sensitivity, shards: list[Gguf], path: Path) -> None:
    """Raise Damaged if a file was measured on another model."""
    if sensitivity.model["sha256"] != model_sha256(shards):
        raise Damaged(
            f"{path.name} was measured on {sensitivity.model.get('name', 'another model')}, "
            f"not on this {shards[0].path.name}",
            "measure this model: minitron sensitivity MODEL -f TEXT",
        )


def model_sha256(shards: list[Gguf]) -> str:
    """The SHA-256 of a model's file, or one over those of its shards."""
    hashes = [file_sha256(shard.path) for shard in shards]
    return hashes[0] if len(hashes) == 1 else fingerprint(*hashes)


def _importance(
    settings: SensitivitySettings,
    shards: list[Gguf],
    model: Model,
    tensors: Tensors,
    progress: Progress,
) -> ImportanceMatrix:
    given = read_imatrix(settings.imatrix) if settings.imatrix else None
    infos = {name: info for name, (_, info) in tensors.items()}
    if given is not None:
        match_importance(Importance(given.weights(), ()), infos, [])
        if given.origin is not None and given.origin.model != model_fingerprint(shards):
            raise Damaged(
                f"{settings.imatrix} was made on another model",
                "make one on this model: minitron imatrix MODEL -f TEXT --process-output",
            )
    chunks = replace(settings.chunks, limit=None)
    collecting = CollectSettings((settings.text,), chunks)
    return complete(given, model, infos, collecting, progress)


def _begun(
    settings: SensitivitySettings,
    shards: list[Gguf],
    inputs: CostInputs,
    noise: dict[str, dict[int, Doubles]],
    progress: Progress,
) -> Sensitivity:
    threads = settings.chunks.threads or default_threads()
    found = type_costs(inputs, threads, progress)
    rounding = rounding_costs(sampled_tasks(inputs), noise, threads)
    return Sensitivity(
        model={"name": settings.model.name, "sha256": model_sha256(shards)},
        text=named_sha256(settings.text),
        imatrix=named_sha256(settings.imatrix_output)
        | ({"given": file_sha256(settings.imatrix)} if settings.imatrix else {}),
        ctx=settings.chunks.n_ctx,
        probe=TYPE[PROBES[0]].name,
        tensors={
            name: TensorSensitivity(by_type, by_type[probe_of(by_type)], rounding.get(name, {}))
            for name, by_type in found.items()
        },
    )
