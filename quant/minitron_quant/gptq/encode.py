"""Encode rows with feedback, and keep the plain encoding of every row that it does not help."""

from minitron_core.gguf import TYPE
from minitron_engine.llama.library import ggml
from minitron_quant.array_backend import NUMPY, Arrays
from minitron_quant.gptq.blocks import Bytes, Floats, decoded
from minitron_quant.gptq.cholesky import BlockFactor, error_of
from minitron_quant.gptq.codebook_coder import LatticeCoder
from minitron_quant.gptq.codebook_types import LATTICES
from minitron_quant.gptq.column_solver import solve
from minitron_quant.gptq.scalar_coder import ScalarCoder
from minitron_quant.gptq.scalar_layouts import LAYOUTS


def supports(kind: int) -> bool:
    """Whether there is feedback for a type (its ggml id)."""
    return TYPE[kind].name in LAYOUTS or TYPE[kind].name in LATTICES


def coder_of(
    kind: int, plain: Bytes, rows: int, arrays: Arrays = NUMPY
) -> ScalarCoder | LatticeCoder:
    """What chooses the codes of rows that are encoded already."""
    name, blocks = TYPE[kind].name, plain.reshape(-1, TYPE[kind].block_bytes)
    if name in LAYOUTS:
        return ScalarCoder(LAYOUTS[name], blocks, rows, arrays)
    return LatticeCoder(name, blocks, rows, arrays)


def encode_rows(
    kind: int, values: Floats, plain: Bytes, blocks: list[BlockFactor], arrays: Arrays = NUMPY
) -> Bytes:
    """The rows [rows, columns] encoded with feedback, as bytes.

    plain: the same rows as ggml encodes them; their scales are where the search starts, and a row
    whose error e H eᵀ is not smaller than theirs stays as it is.
    """
    with arrays.active():
        coder = coder_of(kind, plain, len(values), arrays)
        solve(coder, values, blocks, arrays)
        packed = coder.pack().reshape(len(values), -1)
    kept = plain.reshape(len(values), -1)
    before, after = (
        error_of(decoded(kind, data, values.shape) - values, blocks) for data in (kept, packed)
    )
    # written so that an error which is not a number keeps the plain row
    packed[~(after < before)] = kept[~(after < before)]
    if not ggml().ggml_validate_row_data(kind, packed.ctypes.data, packed.nbytes):
        return plain
    return packed.reshape(-1)
