"""Collect input covariance: run a text through a model and write Σ xᵀx of every input to a file.

Memory is bounded: where the sums of all inputs do not fit, the text runs once for each group of
inputs that fits, and a decode ends with the last of them. Complete groups are on disk, and the same
call continues after an interruption.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron_core.atomic_files import write_whole
from minitron_core.errors import MinitronError, OutOfResources, Usage
from minitron_core.gguf import GgufWriter, TensorSpec, file_size, open_gguf
from minitron_core.hashing import fingerprint
from minitron_core.progress import Event, Progress, ignore
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.array_backend import best_arrays
from minitron_quant.chunking import ChunkSettings, chunk_texts, decode_chunks
from minitron_quant.covariance.files import (
    PARTS,
    Covariance,
    CovarianceOrigin,
    open_covariance,
    specs_of,
)
from minitron_quant.covariance.gram import GramSums, block_edges
from minitron_quant.covariance.input_hook import InputHook, ModelInputs, find_inputs
from minitron_quant.provenance import calibration_origin

# columns of a diagonal block: benchmarks/results/gptq_width.md shows the gain of wider ones
BLOCK = 1024
FULL = 1 << 20
# chunks to keep for measuring: they give a divergence to about 3 %
_SAMPLED = 16


@dataclass(frozen=True)
class CovarianceSettings:
    """What to run, and how much memory the sums may use.

    block: the widest block of columns whose covariance is kept. memory: bytes.
    """

    texts: tuple[Path, ...]
    chunks: ChunkSettings = ChunkSettings()
    block: int = BLOCK
    memory: int = 6 << 30


def collect_covariance(
    model: Model, settings: CovarianceSettings, path: Path, progress: Progress = ignore
) -> Covariance:
    """Write the file unless it exists, made from the same inputs; continue a partial one.

    Raises Usage (too short a text), OutOfResources (memory, disk), MinitronError (inputs that are
    not finite).
    """
    parts = _parts(model, settings)
    inputs = find_inputs(model)
    if not inputs.columns:
        raise MinitronError(f"{model.path.name} has no dense weights to calibrate")
    made_from = calibration_origin(model.path, settings.texts)
    origin = CovarianceOrigin(
        made_from.model,
        made_from.texts,
        tuple(text.name for text in settings.texts),
        tuple(part.size for part in parts),
        settings.chunks.n_ctx,
        tuple(map(int, _sample(parts[-1]).ravel())),
    )
    collection = _Collection(settings, path, inputs, origin)
    if not collection.finished():
        collection.check_disk()
        collection.run(model, parts, progress)
    return open_covariance(path)


def _parts(model: Model, settings: CovarianceSettings) -> list[Tokens]:
    """The chunks of all texts, the first and the second half of them."""
    chunks = chunk_texts(model, settings.texts, settings.chunks)
    if len(chunks) < PARTS:
        raise Usage(
            "the text has fewer than two chunks, too few to calibrate", "allow more --chunks"
        )
    return list(np.array_split(chunks, PARTS))


def _sample(chunks: Tokens) -> Tokens:
    """Chunks from all over a part of the text."""
    count = min(len(chunks), _SAMPLED)
    sample: Tokens = chunks[np.linspace(0, len(chunks) - 1, count).astype(int)]
    return sample


@dataclass(frozen=True)
class _CollectionPass:
    """One pass over a part of the text: some inputs with all their blocks."""

    part: int
    blocks: dict[str, list[tuple[int, int]]]

    @property
    def specs(self) -> list[TensorSpec]:
        return [s for name, edges in self.blocks.items() for s in specs_of(name, edges, self.part)]


class _Collection:
    """The collection of one file, pass by pass."""

    def __init__(
        self,
        settings: CovarianceSettings,
        path: Path,
        inputs: ModelInputs,
        origin: CovarianceOrigin,
    ) -> None:
        self._settings, self._path = settings, path
        self._passes = list(_passes(settings, inputs))
        self._keys = origin.keys(inputs, settings.block)
        self._specs = [spec for step in self._passes for spec in step.specs]
        self._state = path.with_name(f".{path.name}.state")
        self._made_from = fingerprint(*(entry.encoded() for entry in self._keys))

    def finished(self) -> bool:
        """Whether the file exists and was made from the same inputs."""
        if not self._path.exists():
            return False
        # a covariance of another version is replaced, so do not open it as one
        keys = open_gguf(self._path).metadata
        return [entry.encoded() for entry in keys.values()] == [k.encoded() for k in self._keys]

    def check_disk(self) -> None:
        needed = file_size(self._keys, self._specs)
        free = shutil.disk_usage(self._path.parent).free
        if needed > free + self._partial_bytes():
            raise OutOfResources(
                f"{self._path.parent} has {free / 1e9:.1f} GB free, and the covariance needs "
                f"{needed / 1e9:.1f} GB",
                "free some space, or choose another folder",
            )

    def _partial_bytes(self) -> int:
        partial = self._path.with_name(f".{self._path.name}.partial")
        return partial.stat().st_size if partial.exists() else 0

    def run(self, model: Model, parts: list[Tokens], progress: Progress) -> None:
        """Collect what is missing, and finish the file."""
        done = self._done()
        first = sum(len(step.specs) for step in self._passes[:done])
        writer = GgufWriter(self._path, self._keys, self._specs, resume_tensors=first)
        try:
            for number in range(done, len(self._passes)):
                step = self._passes[number]
                self._collect(model, step, parts[step.part], writer, number, progress)
                writer.sync()
                state = {"made_from": self._made_from, "passes": number + 1}
                write_whole(self._state, json.dumps(state))
        except BaseException:
            writer.close()
            raise
        writer.finish()
        self._state.unlink(missing_ok=True)

    def _done(self) -> int:
        """How many passes an interrupted run has completed."""
        try:
            state = json.loads(self._state.read_text())
            fits = state["made_from"] == self._made_from and self._partial_bytes() > 0
            return int(state["passes"]) if fits else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _collect(
        self,
        model: Model,
        step: _CollectionPass,
        chunks: Tokens,
        writer: GgufWriter,
        number: int,
        progress: Progress,
    ) -> None:
        sums = GramSums(step.blocks, best_arrays())
        watch = InputHook([*step.blocks], sums.add)
        how = self._settings.chunks
        progress(Event("covariance", number, len(self._passes), "runs", "of the text"))
        try:
            with open_context(model, how.context(), watch.hook) as context:
                # logits of every token, or llama.cpp drops rows before the last layer's FFN
                for start, group in decode_chunks(context, chunks, how, 0, read_logits=False):
                    watch.check()
                    done = number + (start + len(group)) / len(chunks)
                    progress(Event("covariance", done, len(self._passes), "runs", "of the text"))
            for total in sums.take():
                writer.write(total)
        finally:
            sums.close()


def _passes(settings: CovarianceSettings, inputs: ModelInputs) -> Iterator[_CollectionPass]:
    """Groups of inputs whose sums fit the memory, each with both parts of the text."""
    group: dict[str, list[tuple[int, int]]] = {}
    memory, used = best_arrays().memory_limit(settings.memory), 0
    for name, columns in inputs.columns.items():
        edges = block_edges(columns, settings.block)
        size = sum(4 * (end - start) ** 2 for start, end in edges)
        if size > memory:
            raise OutOfResources(
                f"the covariance of {name} needs {size / 1e9:.1f} GB of memory",
                "collect it in blocks: --effort normal",
            )
        if group and used + size > memory:
            yield from (_CollectionPass(part, group) for part in range(PARTS))
            group, used = {}, 0
        group[name] = edges
        used += size
    if group:
        yield from (_CollectionPass(part, group) for part in range(PARTS))
