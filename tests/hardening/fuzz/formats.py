"""Where the numbers of binary formats are, and mutators that know how the formats are built."""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from functools import lru_cache
from random import Random

from hardening.fuzz.json_values import damage_json
from hardening.fuzz.mutate import NUMBERS, Field, damage_bytes, number_fields
from minitron_core.gguf.values import skip_value

_HOSTILE_OPCODES = (
    b"cposix\nsystem\n",
    b"cbuiltins\neval\n",
    b"cbuiltins\ngetattr\n",
    b"ctorch.hub\nload\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ccollections\nOrderedDict\n",
    b"(S'echo x'\ntR.",
    b"X\x07\x00\x00\x00storage",
    b"Vx\n",
    b"I99999999999999999999\n",
    b"L1" + b"0" * 50 + b"L\n",
    b"G\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"j\xff\xff\xff\xff",
    b"r\xff\xff\xff\xff",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8d" + b"\xff" * 8,
    b"\x95" + b"\xff" * 8,
    b"B\xff\xff\xff\x7f",
    *(bytes([code]) for code in b"(]}).N01te2sauRbQlo\x85\x86\x87\x88\x89\x93\x94\x81\x90\x91"),
    b"(" * 2000,
    b"]" * 2000,
    b"h\x00",
    b"K\x00",
    b"M\xff\xff",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08" + b"\xff" * 8,
)


def gguf_fields(data: bytes) -> list[Field]:
    """Counts, lengths, types, dimensions and offsets of a sound GGUF file."""
    tensors, values = struct.unpack_from("<QQ", data, 8)
    fields, at = [(4, 4), (8, 8), (16, 8)], 24
    for _ in range(values):
        at = _string(data, at, fields)
        (kind,) = struct.unpack_from("<I", data, at)
        fields.append((at, 4))
        end = skip_value(data, at + 4, kind)
        fields.append((at + 4, min(8, end - at - 4)))
        if kind == 9:
            fields += [(at + 4, 4), (at + 8, 8), (at + 16, min(8, end - at - 16))]
        at = end
    for _ in range(tensors):
        at = _string(data, at, fields)
        (dimensions,) = struct.unpack_from("<I", data, at)
        fields.append((at, 4))
        fields += [(at + 4 + 8 * number, 8) for number in range(dimensions)]
        at += 4 + 8 * dimensions
        fields += [(at, 4), (at + 4, 8)]
        at += 12
    return [(offset, size) for offset, size in fields if size > 0]


def gguf_numbers(data: bytes) -> list[Field]:
    """Values of a sound GGUF file's keys that are single numbers: what a model computes with."""
    (values,) = struct.unpack_from("<Q", data, 16)
    fields, at = [], 24
    for _ in range(values):
        at = _string(data, at, [])
        (kind,) = struct.unpack_from("<I", data, at)
        end = skip_value(data, at + 4, kind)
        if kind not in (8, 9):
            fields.append((at + 4, end - at - 4))
        at = end
    return fields


def _string(data: bytes, at: int, fields: list[Field]) -> int:
    fields.append((at, 8))
    return int(at + 8 + struct.unpack_from("<Q", data, at)[0])


def gguf_entries(data: bytes) -> list[tuple[int, int]]:
    """The stretches of a sound GGUF file's entries: every key, every tensor."""
    tensors, values = struct.unpack_from("<QQ", data, 8)
    entries, at, ignored = [], 24, list[Field]()
    for _ in range(values):
        end = _string(data, at, ignored)
        end = skip_value(data, end + 4, struct.unpack_from("<I", data, end)[0])
        entries.append((at, end))
        at = end
    for _ in range(tensors):
        end = _string(data, at, ignored)
        end += 4 + 8 * int(struct.unpack_from("<I", data, end)[0]) + 12
        entries.append((at, end))
        at = end
    return entries


_entries_of = lru_cache(64)(gguf_entries)


def move_entries(data: bytes, choose: Random) -> bytes:
    """Keys or tensors of a GGUF file left out, given twice, or exchanged; counts may follow."""
    tensors, values = struct.unpack_from("<QQ", data, 8)
    known = _entries_of(data)
    parts = [data[start:end] for start, end in known]
    at, other = choose.randrange(len(parts)), choose.randrange(len(parts))
    kind, change = choose.randrange(4), 0
    if kind == 0:
        del parts[at]
        change = -1
    elif kind == 1:
        parts.insert(other, parts[at])
        change = 1
    elif kind == 2:
        parts[at], parts[other] = parts[other], parts[at]
    else:
        parts[at] = damage_bytes(parts[at], choose)
    if at < values:
        values += change
    else:
        tensors += change
    head = data[:8] + struct.pack("<QQ", max(tensors, 0), max(values, 0))
    tail = data[known[-1][1] :]
    body = b"".join(parts)
    if choose.random() < 0.5:  # the data stay aligned
        end = known[-1][1]
        data_at = -(-end // 32) * 32
        tail = b"\0" * (-(24 + len(body)) % 32) + data[data_at:]
    return head + body + tail


def dat_fields(data: bytes) -> list[Field]:
    """Counts and lengths of a sound .dat importance matrix."""
    (entries,) = struct.unpack_from("<i", data)
    fields, at = [(0, 4)], 4
    for _ in range(entries):
        (length,) = struct.unpack_from("<i", data, at)
        calls = at + 4 + length
        (values,) = struct.unpack_from("<i", data, calls + 4)
        fields += [(at, 4), (calls, 4), (calls + 4, 4), (calls + 8, 4)]
        at = calls + 8 + 4 * values
    return [*fields, *((at + step, 4) for step in range(0, min(8, len(data) - at), 4))]


def choice_fields(data: bytes) -> list[Field]:
    """Counts, offsets and lengths of a sound file of multiple-choice questions."""
    (count,) = struct.unpack_from("<I", data)
    fields = [(4 * number, 4) for number in range(count + 1)]
    for number in range(count):
        (at,) = struct.unpack_from("<I", data, 4 + 4 * number)
        fields.append((at, 4))
        at += 4 + int(struct.unpack_from("<I", data, at)[0])
        for _ in range(2):
            (answers,) = struct.unpack_from("<I", data, at)
            fields.append((at, 4))
            at += 4
            for _ in range(answers):
                fields.append((at, 4))
                at += 4 + int(struct.unpack_from("<I", data, at)[0])
            fields += [(at + 4 * number, 4) for number in range(answers)]
            at += 4 * answers
    return fields


def damage_safetensors(data: bytes, choose: Random) -> bytes:
    """The header's JSON damaged, or its length."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if choose.random() < 0.2:
        return number_fields(lambda _: [(0, 8)])(data, choose)
    header = damage_json(header, choose)
    told = len(header) if choose.random() < 0.95 else choose.choice(NUMBERS)
    return (told % 2**64).to_bytes(8, "little") + header + rest


def damage_torch(data: bytes, choose: Random) -> bytes:
    """A torch archive with a damaged pickle, made again, or with numbers of the archive changed."""
    if choose.random() < 0.3:
        return number_fields(zip_fields)(data, choose)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = damage_pickle(content, choose)
            elif choose.random() < 0.02:
                content = damage_bytes(content, choose)
            if choose.random() > 0.02:
                new.writestr(entry, content)
    return out.getvalue()


def zip_fields(data: bytes) -> list[Field]:
    """The numbers of a zip archive's headers, local and central."""
    layouts = {b"PK\x03\x04": (4, 30), b"PK\x01\x02": (4, 46), b"PK\x05\x06": (4, 22)}
    fields = []
    for mark, (first, end) in layouts.items():
        at = data.find(mark)
        while at >= 0:
            fields += [(at + step, 2) for step in range(first, end, 2) if at + step + 2 < len(data)]
            fields += [(at + step, 4) for step in range(first, end, 2) if at + step + 4 < len(data)]
            at = data.find(mark, at + 4)
    return fields


@lru_cache(64)
def _opcodes(data: bytes) -> list[bytes]:
    starts = [position for _, _, position in pickletools.genops(data) if position is not None]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def damage_pickle(data: bytes, choose: Random) -> bytes:
    """Opcodes left out, repeated, exchanged, with other arguments, or such as run code."""
    parts = list(_opcodes(data))
    for _ in range(choose.choice((1, 1, 2, 4))):
        at, other = choose.randrange(len(parts)), choose.randrange(len(parts))
        kind = choose.randrange(6)
        if kind == 0 and len(parts) > 1:
            del parts[at]
        elif kind == 1:
            parts[at] *= choose.choice((2, 3, 500))
        elif kind == 2:
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts[at] = damage_bytes(parts[at], choose)
        elif kind == 4:
            parts[at] = choose.choice(_HOSTILE_OPCODES)
        else:
            parts.insert(at, choose.choice(_HOSTILE_OPCODES))
    return b"".join(parts)


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def message(*fields: tuple[int, int | bytes | float]) -> bytes:
    """A protobuf message of (number, value): int as varint, float as f32, bytes with length."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        elif isinstance(value, float):
            parts.append(varint(number << 3 | 5) + struct.pack("<f", value))
        else:
            parts.append(varint(number << 3 | 2) + varint(len(value)) + value)
    return b"".join(parts)


def damage_message(data: bytes, choose: Random) -> bytes:
    """A protobuf message of messages with fields moved, retagged, or of lying length."""
    parts = _parts(data)
    for _ in range(choose.choice((1, 1, 2))):
        at, other = choose.randrange(len(parts)), choose.randrange(len(parts))
        head, length, content = parts[at]
        kind = choose.randrange(7)
        if kind == 0 and len(parts) > 1:
            del parts[at]
        elif kind == 1:
            parts[at:at] = [parts[other]] * choose.choice((1, 2, 300))
        elif kind == 2:
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            tag = choose.choice((choose.randrange(32) << 3 | choose.randrange(8), 2**32, 2**69))
            parts[at] = (varint(tag), length, content)
        elif kind == 4:
            parts[at] = (head, varint(choose.choice((*NUMBERS, 2**70, 2**80))), content)
        elif kind == 5:
            content = damage_bytes(content, choose)
            parts[at] = (head, varint(len(content)), content)
        else:
            inner = choose.choice((1, 2, 3)) << 3 | choose.choice((0, 1, 2, 5))
            content = varint(inner) + varint(choose.choice(NUMBERS)) + content[2:]
            parts[at] = (head, varint(len(content)), content)
    return b"".join(head + length + content for head, length, content in parts)


def _parts(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    parts, at = [], 0
    while at < len(data):
        length = data[at + 1]
        size = 1
        if length > 0x7F:
            length, size = length & 0x7F | data[at + 2] << 7, 2
        start = at + 1 + size
        parts.append((data[at : at + 1], data[at + 1 : start], data[start : start + length]))
        at = start + length
    return parts
