"""SentencePiece vocabularies: reading tokenizer.model, a protobuf message, field by field.

The messages and field numbers are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_convert.vocab.tokens import TokenType, Vocabulary, looks_special
from minitron_core.errors import Damaged, Unsupported, from_os_error
from minitron_core.lfs_pointer import refuse_lfs_pointer
from minitron_core.quoting import quoted

PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
TRAINER_MODEL_TYPE, NORMALIZER_DUMMY_PREFIX = 3, 3
UNIGRAM, BPE = 1, 2

PLACEHOLDER_SCORE, ADDED_SCORE = -10000.0, -1000.0
SPACE = "▁"


class _Malformed(ValueError):
    pass


@dataclass(frozen=True)
class Model:
    """A tokenizer.model: its pieces (bytes, score, type by id) and what its normalizer does."""

    pieces: list[tuple[bytes, float, int]]
    add_dummy_prefix: bool
    kind: int


def read_model(path: Path) -> Model:
    """Read a tokenizer.model. NotFound, Denied, Damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise from_os_error(error, path, "read") from error
    refuse_lfs_pointer(path, data)
    try:
        return _parse(data)
    except (ValueError, struct.error, TypeError) as error:
        raise Damaged(f"{path} is not a SentencePiece model", "download it again") from error


def _parse(data: bytes) -> Model:
    pieces: list[tuple[bytes, float, int]] = []
    prefix, kind = True, UNIGRAM
    for number, value in _fields(data):
        if number == PIECES:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[PIECE_SCORE])[0] if PIECE_SCORE in piece else 0.0
            kind_of_piece = TokenType(piece.get(PIECE_TYPE, TokenType.NORMAL))
            pieces.append((_bytes(piece.get(PIECE_TEXT, b"")), score, kind_of_piece))
        elif number == TRAINER:
            kind = dict(_fields(value)).get(TRAINER_MODEL_TYPE, UNIGRAM)
        elif number == NORMALIZER:
            prefix = bool(dict(_fields(value)).get(NORMALIZER_DUMMY_PREFIX, True))
    if not pieces:
        raise _Malformed("it holds no pieces")
    return Model(pieces, prefix, kind)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise _Malformed("a field has the wrong type")
    return value


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """The fields of a message in order: numbers as int, everything else as its bytes."""
    data = _bytes(message)
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise _Malformed(f"wire type {wire} is unknown")
        end = position + length
        if end > len(data):
            raise _Malformed("a field reaches beyond its end")
        yield number, data[position:end]
        position = end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Malformed("a number does not end")


def build(
    folder: Path, size: int, added: dict[int, tuple[str, bool]], *, as_marked: bool = False
) -> Vocabulary:
    """The vocabulary of the folder's tokenizer.model, `size` tokens long, with added tokens.

    `added` gives text and the mark of being special by id; with `as_marked` that mark alone
    decides, and texts stay as they are. Unsupported: models that are not BPE.
    """
    path = folder / "tokenizer.model"
    model = read_model(path)
    if model.kind not in (UNIGRAM, BPE):
        raise Unsupported(f"{path} splits text into words or characters, not pieces")
    vocabulary = Vocabulary.unused("llama", "default", size)
    vocabulary.scores = [PLACEHOLDER_SCORE] * size
    if len(model.pieces) > size:
        raise Damaged(
            f"{path} has {len(model.pieces)} pieces; the model has a vocabulary of {size}",
            "the tokenizer belongs to another model",
        )
    if model.kind == UNIGRAM:
        vocabulary.notes.append(
            f"{path.name} is a unigram model: llama.cpp splits some texts differently"
        )
    for i, (text, score, kind) in enumerate(model.pieces):
        vocabulary.tokens[i], vocabulary.scores[i], vocabulary.types[i] = text, score, kind
        if kind == TokenType.USER_DEFINED and as_marked:
            vocabulary.types[i] = TokenType.NORMAL
        elif kind == TokenType.USER_DEFINED:
            # llama.cpp looks for these in the text as it is, before spaces become ▁.
            vocabulary.tokens[i] = text.replace(SPACE.encode(), b" ")
    for i, (token, special) in added.items():
        if i >= size:
            vocabulary.notes.append(
                f"token {i} ({quoted(token)}) is beyond the vocabulary: left out"
            )
            continue
        put_added(vocabulary, i, token, special, as_marked=as_marked)
        vocabulary.scores[i] = ADDED_SCORE
    if not model.add_dummy_prefix:
        vocabulary.add_space_prefix = False
    return vocabulary


def put_added(
    vocabulary: Vocabulary, i: int, token: str, special: bool, *, as_marked: bool = False
) -> None:
    """Set an added token: control, or matched as it stands, its spaces as they are in text."""
    control = special or (looks_special(token) and not as_marked)
    vocabulary.types[i] = TokenType.CONTROL if control else TokenType.USER_DEFINED
    text = token if control or as_marked else token.replace(SPACE, " ")
    vocabulary.tokens[i] = text.encode()
