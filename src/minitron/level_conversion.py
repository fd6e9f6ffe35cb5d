"""A checkpoint straight to a level: what the converter reads is what the quantizer encodes.

Every tensor passes through `convert` and `quantize` in turn, piece by piece: first to
the type of a full-precision file, then to the level's. Only the header of the full-precision file
is written, because llama.cpp chooses the level's types by it.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from minitron_convert.convert import ConvertResult, ConvertSettings, Encoder, write_plan
from minitron_convert.encode_stream import Piece, encoded_rows
from minitron_convert.plan import (
    Plan,
    PlannedFile,
    PlannedTensor,
    output_path,
    plan,
    split_files,
)
from minitron_core.cpu_limits import default_threads
from minitron_core.errors import ImatrixNeeded
from minitron_core.gguf import Gguf, encode_header, open_gguf
from minitron_core.progress import Progress
from minitron_quant.array_backend import Bytes
from minitron_quant.levels import Level
from minitron_quant.quantize.encode import SLAB_ELEMENTS, EncodeTask, encode
from minitron_quant.quantize.fallbacks import fallback_notes
from minitron_quant.quantize.importance import load_importance, match_importance
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.plan import level_metadata, make_plan

# slabs read, in work and done at one time, and the bytes of an element before and after
_SLABS, _BYTES_PER_ELEMENT = 6, 4


def convert_to_level(settings: ConvertSettings, level: Level, progress: Progress) -> ConvertResult:
    """Write the file that quantizing the checkpoint's conversion to `settings.outtype` would give.

    Errors: those of convert(); ImatrixNeeded.
    """
    full = plan(replace(settings, split_max_size=0))
    sources = {tensor.spec.name: tensor for tensor in full.files[0].tensors}
    with header_alone(full.files[0]) as header:
        planned = _plan_level(settings, full, header, level)

        def pieces(tensors: Sequence[PlannedTensor]) -> Iterator[Piece]:
            wanted = {tensor.spec.name: tensor for tensor in tensors}
            tasks = (
                EncodeTask(
                    header.tensor(name), PlannedRows(sources[name]), (tensor.spec.type,), None
                )
                for name, tensor in wanted.items()
            )
            for slab in encode(tasks, default_threads()):
                tensor = wanted[slab.task.info.name]
                yield Piece(tensor, slab.blocks[tensor.spec.type])

        memory = _SLABS * SLAB_ELEMENTS * _BYTES_PER_ELEMENT
        return write_plan(settings, planned, Encoder(pieces, memory), progress)


def _plan_level(settings: ConvertSettings, full: Plan, header: Gguf, level: Level) -> Plan:
    try:
        chosen = make_plan([header], [level], QuantizeOptions(), imatrix=False)
        infos = {info.name: info for info in header.tensors}
        match_importance(load_importance(None), infos, chosen.levels)
    except ImatrixNeeded as error:
        raise ImatrixNeeded(
            f"{level.name} needs an importance matrix, which is made with the converted model",
            f"minitron quantize {settings.source} {level.name} -f TEXT calibrates on a text first",
        ) from error
    sources = {tensor.spec.name: tensor.source for tensor in full.files[0].tensors}
    (planned,) = chosen.levels
    tensors = [PlannedTensor(spec, sources[spec.name]) for spec in chosen.specs(planned)]
    path = output_path(settings.output, full.model_name, level.name)
    metadata = level_metadata(header, level, (), ())
    files = split_files(path, metadata, tensors, settings.split_max_size)
    notes = full.notes + fallback_notes({level.name: planned.fallbacks}, len(tensors))
    return replace(full, outtype=level.name.lower(), files=files, notes=notes)


@contextmanager
def header_alone(file: PlannedFile, *, vectors: bool = False) -> Iterator[Gguf]:
    """A sparse file with the planned header and size; its data takes no space on the disk.

    vectors: write their values, by which an importance matrix is known to be this model's.
    It is not put beside the output, since a dry run must work where nothing may be written.
    """
    with tempfile.TemporaryDirectory(prefix="minitron-") as folder:
        path = Path(folder) / file.path.name
        path.write_bytes(encode_header(file.metadata, [tensor.spec for tensor in file.tensors]))
        os.truncate(path, file.size)
        header = open_gguf(path)
        if vectors:
            _write_vectors(file, header)
        yield header


def _write_vectors(file: PlannedFile, header: Gguf) -> None:
    with header.path.open("r+b") as target:
        for tensor in file.tensors:
            if len(tensor.spec.shape) == 1:
                target.seek(header.data_offset + header.tensor(tensor.spec.name).offset)
                target.write(PlannedRows(tensor)[0 : tensor.spec.nbytes].tobytes())


class PlannedRows:
    """A tensor's bytes in its full-precision type, read and encoded when a part is sliced."""

    def __init__(self, tensor: PlannedTensor) -> None:
        self._tensor = tensor

    def __getitem__(self, part: slice, /) -> Bytes:
        source = self._tensor.source
        size = self._tensor.spec.nbytes // source.rows
        unit = size * source.step  # what can be read at once
        start = part.start // unit * source.step
        stop = min(-(-part.stop // unit) * source.step, source.rows)
        rows = np.ascontiguousarray(encoded_rows(self._tensor, start, stop))
        return rows.reshape(-1).view(np.uint8)[part.start - start * size : part.stop - start * size]
