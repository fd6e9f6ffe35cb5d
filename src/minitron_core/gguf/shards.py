"""The names of a model's shards: NAME-00001-of-00003.gguf, as llama.cpp's gguf-split makes them."""

import re
from pathlib import Path
from typing import NamedTuple

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class ShardName(NamedTuple):
    """One shard of `total`; numbers begin at 1, and the stem may have folders in it."""

    stem: str
    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.stem}-{self.number:05d}-of-{self.total:05d}.gguf"

    def all(self) -> list[str]:
        """The names of all shards of the model, in order."""
        return [str(self._replace(number=number)) for number in range(1, self.total + 1)]


def parse_shard_name(name: str) -> ShardName | None:
    """The parts of a shard's name, which may be a path; None for the name of a single file."""
    found = _SHARD.fullmatch(name)
    return ShardName(found["stem"], int(found["number"]), int(found["count"])) if found else None


def shard_paths(path: Path) -> list[Path]:
    """All files of a model by the path of any of its shards; a single file is its own."""
    name = parse_shard_name(path.name)
    return [path] if name is None else [path.with_name(other) for other in name.all()]


def model_stem(path: Path) -> str:
    """The name of a model's file without the shard's number and `.gguf`."""
    name = parse_shard_name(path.name)
    return name.stem if name else path.name.removesuffix(".gguf")
