"""A loaded model: its weights, its vocabulary, its facts."""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import Damaged, MinitronError, NotFound, OutOfResources, Unsupported
from minitron_engine.llama import devices, log, overrides
from minitron_engine.llama.binding import api
from minitron_engine.memory.placement import EVERY_GPU, Placement
from minitron_engine.process import aborts, interrupts

if TYPE_CHECKING:
    from minitron_engine.llama.context import ContextSettings

Tokens = NDArray[np.int32]
LoadProgress = Callable[[float], None]


@dataclass(frozen=True)
class ModelSettings:
    """What to load and where; the KV cache of `n_ctx` tokens must fit beside the weights.

    context: the context to be opened, which `auto` then measures; one of n_ctx tokens otherwise.
    writable: in memory of its own and laid out as in the file, so that weights can be replaced.
    beside: a model that stays open longer, with the same architecture and the same vocabulary,
    which is used for this one too: to build another is most of a small model's load.
    """

    path: Path
    gpu_layers: devices.GpuLayers = "auto"
    n_ctx: int = 4096
    vocab_only: bool = False
    writable: bool = False
    placement: Placement = EVERY_GPU
    context: "ContextSettings | None" = None
    beside: "Model | None" = None


class Model:
    """A model held by llama.cpp; made by `open_model`, which also frees it."""

    def __init__(
        self,
        handle: int,
        path: Path,
        offloaded: int,
        gpus: Sequence[devices.Device] = (),
        beside: "Model | None" = None,
    ) -> None:
        self.handle = handle
        self.path = path
        self.vocab: Any = beside.vocab if beside else api.llama_model_get_vocab(handle)
        self.n_vocab: int = api.llama_vocab_n_tokens(self.vocab)
        self.n_layers: int = api.llama_model_n_layer(handle)
        self.n_ctx_train: int = api.llama_model_n_ctx_train(handle)
        self.add_bos: bool = api.llama_vocab_get_add_bos(self.vocab)
        self.add_eos: bool = api.llama_vocab_get_add_eos(self.vocab)
        self.bos: int = api.llama_vocab_bos(self.vocab)
        self.eos: int = api.llama_vocab_eos(self.vocab)
        self.size: int = api.llama_model_size(handle)
        self.n_params: int = api.llama_model_n_params(handle)
        self.offloaded = min(offloaded, self.n_layers + 1)
        self._gpus = gpus
        self.reason = ""  # why that many layers are on GPUs, for the user

    @property
    def device(self) -> str:
        """Where the layers run, for the user."""
        if self.offloaded == 0:
            return "CPU"
        names = " + ".join(f"{gpu.name} ({gpu.description})" for gpu in self._gpus)
        if self.offloaded > self.n_layers:
            return names
        return f"{names} for {self.offloaded} of {self.n_layers + 1} layers, CPU for the rest"

    @property
    def description(self) -> str:
        """What llama.cpp calls the model: architecture, size class and level."""
        buffer = ctypes.create_string_buffer(128)
        api.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    @property
    def chat_template(self) -> str:
        """The Jinja template that turns a conversation into a prompt, empty where there is none."""
        text: bytes | None = api.llama_model_chat_template(self.handle, None)
        return text.decode(errors="replace") if text else ""

    def special(self, token: int) -> str:
        """A special token as text, empty for none (-1)."""
        return self.piece(token, special=True).decode(errors="replace") if token >= 0 else ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
        """Token ids of a text, as llama.cpp's tools get them."""
        data = text.encode("utf-8", errors="surrogateescape")
        ids = np.empty(len(data) + 8, dtype=np.int32)
        count = self._tokenize(data, ids, add_special, parse_special)
        if count < 0:
            ids = np.empty(-count, dtype=np.int32)
            count = self._tokenize(data, ids, add_special, parse_special)
        return ids[:count].copy()

    def _tokenize(self, data: bytes, ids: Tokens, add_special: bool, parse_special: bool) -> int:
        pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        return int(
            api.llama_tokenize(
                self.vocab, data, len(data), pointer, len(ids), add_special, parse_special
            )
        )

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; a multi-byte character may be spread over several tokens."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = api.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(api.llama_vocab_is_eog(self.vocab, token))

    def is_token(self, text: str) -> bool:
        """Whether a text is exactly one token, as grammars write them: <|end|>."""
        return len(self.tokenize(text, add_special=False, parse_special=True)) == 1

    def suppressed(self) -> list[int]:
        """Tokens that the model says are never to be generated."""
        count = ctypes.c_int32()
        ids: Any = api.llama_vocab_get_suppress_tokens(self.vocab, ctypes.byref(count))
        return list(ids[: count.value]) if ids else []

    def metadata(self, key: str) -> str:
        """A value of the file's metadata as text, empty where the key is missing."""
        return _metadata(self.handle, key)


@contextmanager
def open_model(settings: ModelSettings, progress: LoadProgress | None = None) -> Iterator[Model]:
    """Load a GGUF file (a first shard stands for all) and free it at the end of the block.

    Raises NotFound, and Damaged with llama.cpp's own reason where it refuses the file.
    """
    devices.start()
    if not settings.path.is_file():
        raise NotFound(f"{settings.path} does not exist")
    gpus = settings.placement.chosen()
    layers, placement, reason = 0, settings.placement, ""
    if gpus and settings.gpu_layers != 0 and not settings.vocab_only:
        from minitron_engine.memory.gpu_layers import (
            choose_layers,  # it measures with a model of its own
        )

        choice = choose_layers(settings, gpus)
        layers, placement, reason = choice.layers, choice.placement, choice.reason
    parameters = api.llama_model_default_params()
    parameters.n_gpu_layers = layers
    parameters.vocab_only = settings.vocab_only
    if settings.writable:
        parameters.load_mode = api.LLAMA_LOAD_MODE_NONE
        parameters.use_extra_bufts = False
    kept = placement.apply(parameters)
    if settings.beside:
        kept.append(overrides.as_array(_no_vocabulary(settings.beside)))
        parameters.kv_overrides = kept[-1]
    with _loaded(settings.path, parameters, progress=progress) as handle:
        kept.clear()
        model = Model(handle, settings.path, layers, gpus, settings.beside)
        model.reason = reason
        yield model


def _no_vocabulary(beside: Model) -> list[overrides.Override]:
    """What makes llama.cpp build as many tokens as another model has, without names and rules."""
    family = beside.metadata("general.architecture")
    return [("tokenizer.ggml.model", "no_vocab"), (f"{family}.vocab_size", beside.n_vocab)]


@contextmanager
def measured_model(
    path: Path, layers: int = devices.ALL_LAYERS, placement: Placement = EVERY_GPU
) -> Iterator[Model]:
    """A model without its weights: for sizes only, it cannot decode. Errors: as open_model."""
    devices.start()
    if not path.is_file():
        raise NotFound(f"{path} does not exist")
    parameters = api.llama_model_default_params()
    parameters.n_gpu_layers = layers
    kept = placement.apply(parameters)
    with _loaded(path, parameters, measure=True) as handle:
        kept.clear()
        yield Model(handle, path, 0)


@contextmanager
def _loaded(
    path: Path,
    parameters: api.llama_model_params,
    *,
    measure: bool = False,
    progress: LoadProgress | None = None,
) -> Iterator[int]:
    # `measure` reads only the metadata: enough for sizes and numbers of layers
    if measure:
        parameters.no_alloc = True
        # llama.cpp aborts where a file is mapped that must not be allocated
        parameters.load_mode = api.LLAMA_LOAD_MODE_NONE
    interrupted: list[BaseException] = []

    def advance(share: float, _data: object) -> bool:
        try:
            if progress is not None:
                progress(share)
        except BaseException as error:
            interrupted.append(error)
        return not (interrupted or interrupts.pending())

    callback = api.llama_progress_callback(advance)
    parameters.progress_callback = callback
    handle = None
    try:
        with interrupts.deferred(), aborts.meaning(lambda reason: _refusal(path, reason)):
            handle = api.llama_model_load_from_file(os.fsencode(path), parameters)
        if interrupted:
            raise interrupted[0]
        if not handle:
            raise _refusal(path, log.last_error("error loading model: ") or "no reason given")
        yield handle
    finally:
        if handle:
            api.llama_model_free(handle)


def _metadata(handle: int, key: str) -> str:
    buffer = ctypes.create_string_buffer(256)
    count = api.llama_model_meta_val_str(handle, key.encode(), buffer, len(buffer))
    return buffer.value.decode() if count >= 0 else ""


def _refusal(path: Path, reason: str) -> MinitronError:
    if aborts.is_memory(reason):
        return OutOfResources(f"{path.name} does not fit into memory: {reason}")
    kind = Unsupported if "unknown model architecture" in reason else Damaged
    return kind(f"llama.cpp cannot load {path.name}: {reason}")
