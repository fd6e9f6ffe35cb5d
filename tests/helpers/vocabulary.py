"""A converted vocabulary, and llama.cpp's tokenizer over it."""

import ctypes
from pathlib import Path

from minitron_convert.convert import ConvertSettings, convert
from minitron_engine.llama.binding import api


class Tokenizer:
    """A vocabulary loaded by llama.cpp; `special` says whether special tokens are seen in text."""

    def __init__(self, path: Path, special: bool = False) -> None:
        self.special = special
        self._log = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self._log, ctypes.c_void_p(0))
        parameters = api.llama_model_default_params()
        parameters.vocab_only = True
        self.model = api.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model is not None
        self.vocab = api.llama_model_get_vocab(self.model)

    def encode(self, text: str, add: bool = False) -> list[int]:
        """Token ids of a text."""
        data = text.encode()
        room = len(data) + 16
        buffer = (api.llama_token * room)()
        count = api.llama_tokenize(self.vocab, data, len(data), buffer, room, add, self.special)
        return list(buffer[:count])

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return bool(api.llama_vocab_is_eog(self.vocab, token))

    def close(self) -> None:
        """Free the vocabulary."""
        api.llama_model_free(self.model)


def convert_vocabulary(folder: Path, out: Path) -> Path:
    """The GGUF file of a folder's vocabulary."""
    return convert(ConvertSettings(folder, out, vocab_only=True, force=True)).paths[0]
