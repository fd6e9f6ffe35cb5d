"""Models in memory with the contexts that compute their logits, chunk by chunk."""

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from minitron_core.errors import Unsupported
from minitron_core.gguf import Gguf, KeyValue
from minitron_engine.llama.context import Context, Logits, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import (
    EVERY_GPU,
    GpuLayers,
    ModelSettings,
    Placement,
)
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.loading import open_model
from minitron_engine.process import interrupts
from minitron_quant.chunking import ChunkSettings, check_trained_context, decode_chunks

_LOADERS = 2  # models that are loaded at once
# llama.cpp computes at most this many tokens at once, however large the batch
MICRO_BATCH = 512


@dataclass(frozen=True)
class LoadedModel:
    """A model with a context for `chunks`, that context's lock, and the key of its scores."""

    path: Path
    key: str
    model: Model
    context: Context
    chunks: ChunkSettings
    lock: threading.Lock = field(default_factory=threading.Lock)

    def logits(self, group: Tokens) -> Generator[Logits]:
        """The scored rows of every chunk, [rows, n_vocab]: views, valid until the next decode."""
        for _, part in decode_chunks(self.context, group, self.chunks, self.chunks.first_output):
            yield from (logits[:-1] for logits in part)

    @contextmanager
    def with_context(self, chunks: ChunkSettings) -> Iterator["LoadedModel"]:
        """The same model with one more context."""
        with open_context(self.model, chunks.context()) as context:
            yield LoadedModel(self.path, self.key, self.model, context, chunks)


@dataclass(frozen=True)
class OtherBatchSize:
    """A loaded model that decodes in batches of another size, whose sums round differently.

    Its context exists only while logits are computed.
    """

    loaded: LoadedModel
    key: str
    lock: threading.Lock = field(default_factory=threading.Lock)

    def logits(self, group: Tokens) -> Generator[Logits]:
        """See LoadedModel."""
        chunks = self.loaded.chunks
        size = chunks.n_ctx if chunks.n_seq > 1 else max(1, min(chunks.n_ctx, MICRO_BATCH) // 2)
        with self.loaded.with_context(replace(chunks, n_batch=size)) as other:
            yield from other.logits(group)


LogitsSource = LoadedModel | OtherBatchSize


@dataclass(frozen=True)
class ModelLoader:
    """Loads models for the same chunks; shards and keys of every path are known before."""

    shards: Mapping[Path, list[Gguf]]
    keys: Mapping[Path, str]
    chunks: ChunkSettings
    gpu_layers: GpuLayers
    placement: Placement = EVERY_GPU

    def load(self, path: Path, stack: ExitStack, first: LoadedModel | None = None) -> LoadedModel:
        """Load a model and a context for its chunks; both are closed with the stack.

        first: a model whose vocabulary it takes over where that is the same.
        """
        shares = first and same_vocabulary(self.shards[first.path][0], self.shards[path][0])
        context = self.chunks.context()
        beside = first.model if first and shares else None
        settings = ModelSettings(path, self.gpu_layers, placement=self.placement, context=context)
        model = stack.enter_context(open_model(settings, vocabulary_of=beside))
        check_trained_context(model, self.chunks.n_ctx)
        opened = stack.enter_context(open_context(model, context))
        return LoadedModel(path, self.keys[path], model, opened, self.chunks)

    def load_all(
        self, paths: Sequence[Path], stack: ExitStack, first: LoadedModel | None = None
    ) -> list[LoadedModel]:
        """Load several models, on a CPU two at once: much of a load is the work of one thread."""
        loaded = [] if first else [self.load(paths[0], stack)]
        first = first or loaded[0]
        # on a GPU each must see the memory that those before it took
        workers = ThreadPoolExecutor(1 if first.model.offloaded else _LOADERS)
        # a signal ends the loads; it is delivered when nobody works in what it closes
        with interrupts.deferred(), workers as pool:
            left = paths[len(loaded) :]
            loaded += pool.map(lambda path: self.load(path, stack, first), left)
        return loaded


def same_vocabulary(one: Gguf, other: Gguf) -> bool:
    """Whether two models of one architecture agree in everything that llama.cpp reads of tokens."""

    def facts(file: Gguf) -> dict[str, KeyValue]:
        return {
            key: entry
            for key, entry in file.metadata.items()
            if key == "general.architecture" or key.startswith("tokenizer.")
        }

    return facts(one) == facts(other)


def check_vocabulary(reference: Gguf, model: Gguf) -> None:
    """Unsupported where the tokens of two models differ: their predictions cannot be compared."""
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.tokens"):
        if reference.metadata.get(key) != model.metadata.get(key):
            raise Unsupported(
                f"{model.path.name} has another vocabulary than the reference: nothing to compare",
                "the reference must be the same model at a higher precision",
            )
