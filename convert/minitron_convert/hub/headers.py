"""A checkpoint on the Hub as a plan needs it: everything but the weights, of them the headers."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import SafetensorsParsingError

from minitron_convert.checkpoint.file_names import BESIDE_WEIGHTS, WEIGHTS
from minitron_convert.hub.download import (
    Repository,
    matching,
    open_source,
    parse_repository,
)
from minitron_convert.hub.source import Source
from minitron_core.errors import Damaged

_SAFETENSORS, _INDEX = WEIGHTS[0]


@contextmanager
def open_headers(text: str, revision: str | None = None) -> Iterator[Source]:
    """As open_source, for a plan: weights on the Hub are not downloaded.

    In their place stand files of the same header and size, which are empty and take no space.
    Pickles, and weights that are in the cache, are taken as they are. Errors: as open_source, and
    Damaged.
    """
    repository = parse_repository(text, revision)
    with tempfile.TemporaryDirectory(prefix="minitron-") as place:
        source = None
        if repository is not None:
            with repository.explained():
                source = _open_remote(repository, Path(place))
        yield source or open_source(text, revision)


def _open_remote(repository: Repository, place: Path) -> Source | None:
    """A folder of links and headers; None where they do not help or cannot be downloaded."""
    files = repository.files()
    weights = matching(files or (), (_SAFETENSORS,))
    if files is None or not any(files[name] for name in weights):
        return None
    beside = matching(files, (*BESIDE_WEIGHTS, _INDEX))
    source = repository.fetch(beside)
    for name in beside:
        link = place / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(source.folder / name)
    for name in weights:
        _write_header(repository, name, place / name)
    return Source(place, source.name)


def _write_header(repository: Repository, name: str, path: Path) -> None:
    api = huggingface_hub.HfApi()
    try:
        found = api.parse_safetensors_file_metadata(
            repository.name, name, revision=repository.revision
        )
    except SafetensorsParsingError as error:
        raise Damaged(
            f"{name} of {repository.name} on the Hub is not a safetensors file"
        ) from error
    header = {
        tensor: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
        for tensor, info in found.tensors.items()
    }
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    end = max((info.data_offsets[1] for info in found.tensors.values()), default=0)
    os.truncate(path, 8 + len(encoded) + end)
