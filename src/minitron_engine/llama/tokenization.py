"""Tokenizing text that strangers send: no text may end the process.

Five things in llama.cpp would. A model without a vocabulary aborts. Most pre-tokenizers are a
std::regex, whose recursion takes 320 bytes of stack for each character of a match
(benchmarks/results/tokenization.md): a run of 26,000 characters overflows a usual stack of 8 MiB. A
SentencePiece vocabulary without byte tokens throws for a character that it lacks, the others for a
code point beyond U+10FFFF, and the pre-tokenizer `whitespace` aborts on spaces in a vocabulary of
GPT-2's kind. Two pre-tokenizers would take minutes for a long run of one kind of character.
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
# four bytes that decode to more than U+10FFFF, as llama.cpp reads UTF-8
_BEYOND_UNICODE = rb"(?:\xf4[\x90-\xbf]|[\xf5-\xf7][\x80-\xbf])[\x80-\xbf]{2}"
_REPLACEMENT = "\ufffd".encode()
_LONE_SURROGATES = "[\ud800-\udc7f\udd00-\udfff]"  # the rest are escaped bytes
# pre-tokenizer → what it searches again from each of its characters: superbpe looks ahead to the
# last of the digits, deepseek-llm looks for blanks that end a line
_BLANKS = r"[ \t\v\f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_QUADRATIC = {
    "superbpe": ("digits", r"[0-9]+"),
    "deepseek-llm": ("blanks", rf"(?<!{_BLANKS}){_BLANKS}++(?=[^\sA-Za-z!-/:-~])"),
}
_LONGEST_QUADRATIC = 10_000  # two or three seconds


class Tokenizer:
    """The tokenizer of a vocabulary; token ids as llama.cpp's tools get them."""

    def __init__(self, vocab: int, kind: str = "", pre_tokenizer: str = "") -> None:
        """kind, pre_tokenizer: what the file calls them, tokenizer.ggml.model and .pre."""
        self._vocab, self._kind, self._pre_tokenizer = vocab, kind, pre_tokenizer
        self._is_bpe = api.llama_vocab_type(vocab) == api.LLAMA_VOCAB_TYPE_BPE
        self._is_spm = api.llama_vocab_type(vocab) == api.LLAMA_VOCAB_TYPE_SPM
        self._pieces = self._all_pieces() if self._is_spm and not self._has_byte_tokens() else None

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> TokenIds:
        """Token ids of a text. add_special: BOS where the model wants one, but never EOS.

        An end behind a prompt would end the answer, whatever tokenizer.ggml.add_eos_token says.
        Bytes beyond U+10FFFF become U+FFFD each, as llama.cpp does with other bytes that are not
        UTF-8; a vocabulary of byte tokens keeps them.
        Raises Unsupported without a vocabulary, for a character that it cannot spell, and for a
        run that its pre-tokenizer would take minutes for; OutOfResources where there is no memory
        for the stack that a long match needs.
        """
        data = self._encoded(text)
        self._refuse(text)

        def run() -> TokenIds:
            return self._run(data, add_special, parse_special)

        longest = max(map(len, _BETWEEN_MATCHES.split(data))) if self._is_bpe else 0
        short = longest <= _SHORT_MATCH
        ids = run() if short else _with_stack(run, longest * _STACK_PER_BYTE)
        ends = add_special and api.llama_vocab_get_add_eos(self._vocab) and len(ids)
        return ids[:-1] if ends and ids[-1] == api.llama_vocab_eos(self._vocab) else ids

    def _encoded(self, text: str) -> bytes:
        if text.isascii():
            return text.encode()
        data = re.sub(_LONE_SURROGATES, "\ufffd", text).encode("utf-8", errors="surrogateescape")
        return data if self._is_spm else re.sub(_BEYOND_UNICODE, _REPLACEMENT * 4, data)

    def _refuse(self, text: str) -> None:
        if api.llama_vocab_type(self._vocab) == api.LLAMA_VOCAB_TYPE_NONE:
            raise Unsupported(
                "the model has no vocabulary, so that it cannot read text",
                "convert the model again, with its tokenizer",
            )
        if self._pieces is not None:
            _refuse_unknown(text, self._pieces)
        if self._is_bpe and self._pre_tokenizer == "whitespace" != self._kind and " " in text:
            raise Unsupported(
                f"the pre-tokenizer whitespace cannot split words for a tokenizer {self._kind}",
                "convert the model again",
            )
        if self._is_bpe and self._pre_tokenizer in _QUADRATIC:
            _refuse_quadratic(text, self._pre_tokenizer)

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
                f"the vocabulary cannot spell {_named(character)}: it has no token for each byte",
                "leave the character out, or convert the model with byte tokens",
            )


def _named(character: str) -> str:
    """A character as messages write it: 日 (U+65E5); U+0007; byte 0xFF of what is not UTF-8."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"byte 0x{code - 0xDC00:02X}"
    return f"{character} (U+{code:04X})" if character.isprintable() else f"U+{code:04X}"


def _refuse_quadratic(text: str, pre_tokenizer: str) -> None:
    what, pattern = _QUADRATIC[pre_tokenizer]
    longest = max((len(run) for run in re.findall(pattern, text)), default=0)
    if longest > _LONGEST_QUADRATIC:
        raise Unsupported(
            f"{longest} {what} in a row are too many for the pre-tokenizer {pre_tokenizer}, whose "
            "time grows with the square",
            f"break them into runs of at most {_LONGEST_QUADRATIC}",
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
