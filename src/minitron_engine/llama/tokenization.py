"""Tokenizing text that strangers send: no text may end the process.

Two things in llama.cpp would. Most pre-tokenizers are a std::regex, whose recursion takes up to
420 bytes of stack for each character of a match (benchmarks/results/tokenization.md): a run of
26,000 characters overflows a usual stack of 8 MiB. And a SentencePiece vocabulary without byte
tokens throws for a character that it lacks.
"""

import ctypes
import re
import threading
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from minitron_core.errors import OutOfResources, Unsupported
from minitron_engine.llama.binding import api

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# names without the modules, which the first token of an answer does not need
Tokens: TypeAlias = "NDArray[np.int32]"
TokenIds: TypeAlias = "array[int]"

# no pre-tokenizer has a match with a line break before an ASCII letter or digit inside of it
_BETWEEN_MATCHES = re.compile(rb"\n(?=[0-9A-Za-z])")
_STACK_PER_BYTE = 1 << 10
_SHORT_MATCH = 2000  # bytes for which every thread's stack is large enough
_MARGIN = 1 << 20
_starting_thread = threading.Lock()
_FIRST_BYTE_TOKEN = 3  # where SentencePiece puts <0x00>, after <unk>, <s> and </s>


class Tokenizer:
    """The tokenizer of a vocabulary; token ids as llama.cpp's tools get them."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._is_bpe = api.llama_vocab_type(vocab) == api.LLAMA_VOCAB_TYPE_BPE
        is_spm = api.llama_vocab_type(vocab) == api.LLAMA_VOCAB_TYPE_SPM
        self._pieces = self._all_pieces() if is_spm and not self._has_byte_tokens() else None

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> TokenIds:
        """Token ids of a text. add_special: BOS where the model wants one, but never EOS.

        An end behind a prompt would end the answer, whatever tokenizer.ggml.add_eos_token says.
        Raises Unsupported for a character that the vocabulary cannot spell, OutOfResources where
        there is no memory for the stack that a long match needs.
        """
        data = text.encode("utf-8", errors="surrogateescape")
        if self._pieces is not None:
            _refuse_unknown(text, self._pieces)

        def run() -> TokenIds:
            return self._run(data, add_special, parse_special)

        longest = max(map(len, _BETWEEN_MATCHES.split(data))) if self._is_bpe else 0
        short = longest <= _SHORT_MATCH
        ids = run() if short else _with_stack(run, longest * _STACK_PER_BYTE)
        ends = add_special and api.llama_vocab_get_add_eos(self._vocab) and len(ids)
        return ids[:-1] if ends and ids[-1] == api.llama_vocab_eos(self._vocab) else ids

    def _run(self, data: bytes, add_special: bool, parse_special: bool) -> TokenIds:
        ids = _room(len(data) + 8)
        count = self._call(data, ids, add_special, parse_special)
        if count < 0:
            ids = _room(-count)
            count = self._call(data, ids, add_special, parse_special)
        return ids[:count]

    def _call(self, data: bytes, ids: TokenIds, add_special: bool, parse_special: bool) -> int:
        room: Any = (ctypes.c_int32 * len(ids)).from_buffer(ids)
        return int(
            api.llama_tokenize(
                self._vocab, data, len(data), room, len(ids), add_special, parse_special
            )
        )

    def _text(self, token: int) -> bytes:
        return bytes(api.llama_vocab_get_text(self._vocab, token) or b"")

    def _has_byte_tokens(self) -> bool:
        count = api.llama_vocab_n_tokens(self._vocab)
        return count >= _FIRST_BYTE_TOKEN + 256 and all(
            self._text(_FIRST_BYTE_TOKEN + byte) == b"<0x%02X>" % byte for byte in range(256)
        )

    def _all_pieces(self) -> frozenset[bytes]:
        return frozenset(map(self._text, range(api.llama_vocab_n_tokens(self._vocab))))


def _room(count: int) -> TokenIds:
    return array("i", bytes(4 * count))


def _refuse_unknown(text: str, pieces: frozenset[bytes]) -> None:
    """Unsupported for what llama.cpp would throw on: neither the character nor its bytes exist."""
    for character in sorted(set(text.replace(" ", "\u2581"))):
        data = character.encode("utf-8", errors="surrogateescape")
        spelled = all(b"<0x%02X>" % byte in pieces or bytes([byte]) in pieces for byte in data)
        if data not in pieces and not spelled:
            raise Unsupported(
                f"the vocabulary cannot spell {character!r}: it has no token for each byte",
                "leave the character out, or convert the model with byte tokens",
            )


def _with_stack(run: Callable[[], TokenIds], stack: int) -> TokenIds:
    """What `run` returns, in a thread with so many bytes of stack; they are taken when used."""
    results: list[TokenIds] = []
    thread = threading.Thread(target=lambda: results.append(run()), name="tokenize")
    with _starting_thread:
        usual = threading.stack_size(stack + _MARGIN)
        try:
            thread.start()
        except (RuntimeError, MemoryError, ValueError) as error:
            raise OutOfResources(
                f"there is no memory for the {stack >> 20} MiB of stack that this text needs",
                "break it into lines",
            ) from error
        finally:
            threading.stack_size(usual)
    thread.join()
    return results[0]
