"""A loaded model: its weights, its vocabulary, its metadata."""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minitron_core.errors import Damaged, MinitronError, OutOfResources, Unsupported, Usage
from minitron_engine.llama import devices, log, overrides
from minitron_engine.llama.binding import api
from minitron_engine.llama.library import registry
from minitron_engine.llama.settings import ModelSettings, Offload, Placement
from minitron_engine.llama.tokenization import TokenIds, Tokenizer, Tokens
from minitron_engine.process import aborts, interrupts

LoadProgress = Callable[[float], None]

_PIECE_BYTES = 64  # more than most tokens have
_Piece = ctypes.c_char * _PIECE_BYTES
_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2, "tensor": 3}


class Model:
    """A model held by llama.cpp, as `load_model` yields it.

    offloaded: layers on GPUs, the output counts as one more; reason: why that many.
    """

    def __init__(
        self,
        handle: int,
        path: Path,
        offload: Offload,
        gpus: Sequence[devices.Device] = (),
        vocabulary_of: "Model | None" = None,
    ) -> None:
        self.handle = handle
        self.path = path
        self.vocab: Any = (
            vocabulary_of.vocab if vocabulary_of else api.llama_model_get_vocab(handle)
        )
        self.n_vocab: int = api.llama_vocab_n_tokens(self.vocab)
        self._tokenizer: Tokenizer = (
            vocabulary_of._tokenizer if vocabulary_of else self._make_tokenizer()
        )
        # answers come back to the same tokens, and a call takes longer than a look
        self._texts: dict[int, str] = {}
        self.n_layers: int = api.llama_model_n_layer(handle)
        self.n_ctx_train: int = api.llama_model_n_ctx_train(handle)
        self.add_bos: bool = api.llama_vocab_get_add_bos(self.vocab)
        self.add_eos: bool = api.llama_vocab_get_add_eos(self.vocab)
        self.bos: int = api.llama_vocab_bos(self.vocab)
        self.eos: int = api.llama_vocab_eos(self.vocab)
        self.size: int = api.llama_model_size(handle)
        self.n_params: int = api.llama_model_n_params(handle)
        self.offloaded = min(offload.layers, self.n_layers + 1)
        self.reason = offload.reason
        self._gpus = gpus

    def _make_tokenizer(self) -> Tokenizer:
        kind, pre_tokenizer = (self.metadata(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
        return Tokenizer(self.vocab, kind, pre_tokenizer)

    @property
    def device(self) -> str:
        """The devices that the layers run on, for the user."""
        if self.offloaded == 0:
            return "CPU"
        names = " + ".join(f"{gpu.name} ({gpu.description})" for gpu in self._gpus)
        if self.offloaded > self.n_layers:
            return names
        return f"{names} for {self.offloaded} of {self.n_layers + 1} layers, CPU for the rest"

    @property
    def description(self) -> str:
        """llama.cpp's description of the model: architecture, size class and level."""
        buffer = ctypes.create_string_buffer(128)
        api.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    @property
    def chat_template(self) -> str:
        """The Jinja template that turns a conversation into a prompt; empty without one."""
        text: bytes | None = api.llama_model_chat_template(self.handle, None)
        return text.decode(errors="replace") if text else ""

    def special(self, token: int) -> str:
        """A special token as text; empty for -1."""
        return self.piece(token, special=True).decode(errors="replace") if token >= 0 else ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
        """Token ids of a text, as llama.cpp's tools get them. Errors: those of Tokenizer."""
        import numpy as np

        ids = self.token_ids(text, add_special=add_special, parse_special=parse_special)
        return np.frombuffer(ids, dtype=np.int32)

    def token_ids(self, text: str, *, add_special: bool, parse_special: bool) -> TokenIds:
        """As `tokenize`, without numpy."""
        return self._tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; a multi-byte character may be spread over several tokens."""
        buffer: Any = _Piece()
        count = api.llama_token_to_piece(self.vocab, token, buffer, _PIECE_BYTES, 0, special)
        if count < 0:
            buffer = (ctypes.c_char * -count)()
            count = api.llama_token_to_piece(self.vocab, token, buffer, -count, 0, special)
        piece: bytes = buffer[:count]
        return piece

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(api.llama_vocab_is_eog(self.vocab, token))

    def text(self, token: int) -> str | None:
        """What a token adds to an answer; None where it ends it, or is a part of a character."""
        found = self._texts.get(token)
        if found is None and not self.is_end(token):
            try:
                found = self._texts[token] = self.piece(token).decode()
            except UnicodeDecodeError:
                return None
        return found

    def ends(self) -> list[int]:
        """All tokens that end a generation."""
        is_end = api.llama_vocab_is_eog
        return [token for token in range(self.n_vocab) if is_end(self.vocab, token)]

    def is_token(self, text: str) -> bool:
        """Whether a text is exactly one token, as grammars write them: <|end|>."""
        return len(self.token_ids(text, add_special=False, parse_special=True)) == 1

    def suppressed(self) -> list[int]:
        """Tokens that the model's metadata forbids to generate."""
        count = ctypes.c_int32()
        ids: Any = api.llama_vocab_get_suppress_tokens(self.vocab, ctypes.byref(count))
        return list(ids[: count.value]) if ids else []

    def metadata(self, key: str) -> str:
        """A value of the file's metadata as text; empty where the key is missing."""
        buffer = ctypes.create_string_buffer(256)
        count = api.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if count >= 0 else ""


@contextmanager
def load_model(
    settings: ModelSettings,
    offload: Offload,
    gpus: Sequence[devices.Device] = (),
    progress: LoadProgress | None = None,
    vocabulary_of: Model | None = None,
) -> Iterator[Model]:
    """Load a file with so many layers on GPUs; `minitron_engine.loading.open_model` chooses them.

    gpus: the devices that `offload` names, for the user. Errors: those of open_model.
    """
    parameters = api.llama_model_default_params()
    parameters.n_gpu_layers = offload.layers
    parameters.vocab_only = settings.vocab_only
    if settings.writable:
        parameters.load_mode = api.LLAMA_LOAD_MODE_NONE
    parameters.use_extra_bufts = not (settings.replaceable or settings.writable)
    kept = apply_placement(offload.placement, parameters)
    if vocabulary_of:
        kept.append(overrides.as_array(_no_vocabulary(vocabulary_of)))
        parameters.kv_overrides = kept[-1]
    with _loaded(settings.path, parameters, progress) as handle:
        kept.clear()
        yield Model(handle, settings.path, offload, gpus, vocabulary_of)


@contextmanager
def open_without_weights(path: Path, offload: Offload) -> Iterator[Model]:
    """A model without its weights: it has sizes and cannot decode. Errors: those of open_model."""
    parameters = api.llama_model_default_params()
    parameters.n_gpu_layers = offload.layers
    parameters.no_alloc = True
    # llama.cpp aborts where a file is mapped that must not be allocated
    parameters.load_mode = api.LLAMA_LOAD_MODE_NONE
    kept = apply_placement(offload.placement, parameters)
    with _loaded(path, parameters) as handle:
        kept.clear()
        yield Model(handle, path, Offload())


def apply_placement(placement: Placement, parameters: Any) -> list[Any]:
    """Fill in llama.cpp's model parameters; returns what they point to, to be kept alive."""
    parameters.split_mode = _SPLIT_MODES[placement.split_mode]
    parameters.main_gpu = placement.main_gpu
    kept: list[Any] = []
    if placement.tensor_split:
        most = api.llama_max_devices()
        if len(placement.tensor_split) > most:
            raise Usage(f"llama.cpp splits a model between at most {most} devices")
        shares = (ctypes.c_float * most)(*placement.tensor_split)
        parameters.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
        kept.append(shares)
    if placement.names is not None:
        find = registry().ggml_backend_dev_by_name
        handles = [find(name.encode()) for name in placement.names]
        array = (ctypes.c_void_p * (len(handles) + 1))(*handles, None)
        parameters.devices = ctypes.cast(array, ctypes.c_void_p)
        kept.append(array)
    return kept


def _no_vocabulary(other: Model) -> list[overrides.Override]:
    """What makes llama.cpp build as many tokens as another model has, without names and rules."""
    architecture = other.metadata("general.architecture")
    return [("tokenizer.ggml.model", "no_vocab"), (f"{architecture}.vocab_size", other.n_vocab)]


@contextmanager
def _loaded(
    path: Path,
    parameters: api.llama_model_params,
    progress: LoadProgress | None = None,
) -> Iterator[int]:
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
        with interrupts.deferred(), aborts.explaining(lambda reason: _refusal(path, reason)):
            handle = api.llama_model_load_from_file(os.fsencode(path), parameters)
        if interrupted:
            raise interrupted[0]
        if not handle:
            raise _refusal(path, log.last_error("error loading model: ") or "no reason given")
        yield handle
    finally:
        if handle:
            api.llama_model_free(handle)


def _refusal(path: Path, reason: str) -> MinitronError:
    if aborts.is_memory(reason):
        return OutOfResources(f"{path.name} does not fit into memory: {reason}")
    kind = Unsupported if "unknown model architecture" in reason else Damaged
    return kind(f"llama.cpp cannot load {path.name}: {reason}")
