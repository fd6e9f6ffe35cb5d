"""The importance matrix for mixed precision: with entries for the output and the embedding too.

llama-imatrix leaves the output out by default, and the embedding always; llama-quantize uses both
where a file has them. The output gains most of all tensors from it. The embedding's rows are looked
up, so that all its columns count alike; with ones the encoders that insist on an entry have one.
"""

from dataclasses import replace

import numpy as np

from minitron_core.gguf import TensorInfo
from minitron_core.progress import Progress
from minitron_engine.llama.model import Model
from minitron_quant.imatrix.collect import CollectSettings, collect
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix
from minitron_quant.model_files import EMBEDDING, OUTPUT

# chunks for an entry that a given matrix lacks: what weighs is one column beside another
_ENOUGH = 32


def complete(
    matrix: ImportanceMatrix | None,
    model: Model,
    tensors: dict[str, TensorInfo],
    settings: CollectSettings,
    progress: Progress,
) -> ImportanceMatrix:
    """Complete the matrix; missing entries are collected from as much text as it was made from.

    At most from 32 chunks: a matrix of a large model took hours to make.
    """
    if matrix is not None:
        made_from = matrix.chunk_count * matrix.chunk_size // settings.chunks.n_ctx
        limit = min(_ENOUGH, max(1, made_from)) if matrix.chunk_count else _ENOUGH
        settings = replace(settings, chunks=replace(settings.chunks, limit=limit))
    if matrix is None or (OUTPUT in tensors and OUTPUT not in matrix.entries):
        collected = collect(model, replace(settings, process_output=True), progress)
        collected.datasets = [path.name for path in settings.texts]
        if matrix is None:
            matrix = collected
        elif OUTPUT in collected.entries:
            matrix.entries[OUTPUT] = collected.entries[OUTPUT]
    if EMBEDDING in tensors and EMBEDDING not in matrix.entries:
        columns = tensors[EMBEDDING].shape[0]
        matrix.entries[EMBEDDING] = Entry(np.ones((1, columns), np.float32), np.ones(1, np.int64))
    return matrix
