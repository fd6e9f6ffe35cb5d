"""Encode rows with GPTQ; a row that it does not improve keeps ggml's encoding."""

import math

import numpy as np

from minitron_core.gguf import TYPE
from minitron_quant.array_backend import NUMPY, Arrays, Bytes, Doubles, Floats
from minitron_quant.blocks import are_valid, decode_blocks
from minitron_quant.gptq.cholesky import BlockFactor, error_of, errs_more
from minitron_quant.gptq.codebook_coder import CodebookCoder
from minitron_quant.gptq.codebook_types import CODEBOOKS
from minitron_quant.gptq.column_solver import solve
from minitron_quant.gptq.compiled_solver import solve_compiled
from minitron_quant.gptq.scalar_coder import ScalarCoder
from minitron_quant.gptq.scalar_layouts import LAYOUTS
from minitron_quant.kernels import gptq


def supports(ggml_type: int) -> bool:
    """Whether GPTQ can choose the codes of a type (its ggml id)."""
    return TYPE[ggml_type].name in LAYOUTS or TYPE[ggml_type].name in CODEBOOKS


def coder_of(
    ggml_type: int, plain: Bytes, rows: int, arrays: Arrays = NUMPY
) -> ScalarCoder | CodebookCoder:
    """What chooses the codes of rows that ggml has encoded."""
    name, blocks = TYPE[ggml_type].name, plain.reshape(-1, TYPE[ggml_type].block_bytes)
    if name in LAYOUTS:
        return ScalarCoder(LAYOUTS[name], blocks, rows, arrays)
    return CodebookCoder(name, blocks, rows, arrays)


def _chosen(
    ggml_type: int,
    coder: ScalarCoder | CodebookCoder,
    values: Floats,
    blocks: list[BlockFactor],
    arrays: Arrays,
    sweeps: int,
) -> tuple[Bytes, Doubles]:
    """The rows with GPTQ's codes, [rows, bytes], and their errors e H eᵀ."""
    if arrays.module is np and gptq.usable():
        packed, errors = solve_compiled(coder, values, blocks, sweeps)
        return packed.reshape(len(values), -1), errors
    solve(coder, values, blocks, arrays, sweeps)
    packed = coder.pack().reshape(len(values), -1)
    return packed, error_of(decode_blocks(ggml_type, packed, values.shape) - values, blocks)


def encode_rows(
    ggml_type: int,
    values: Floats,
    plain: Bytes,
    blocks: list[BlockFactor],
    arrays: Arrays = NUMPY,
    sweeps: int = 0,
) -> Bytes:
    """The rows [rows, columns] encoded with GPTQ, as bytes.

    plain: the same rows as ggml encodes them. The search starts at their scales, and a row whose
    error e H eᵀ does not get smaller keeps them. sweeps: of coordinate descent after GPTQ.
    """
    kept = plain.reshape(len(values), -1)
    if any(math.isnan(block.added) for block in blocks):  # R is not that of H: no guide
        sweeps = 0
    with arrays.active():
        coder = coder_of(ggml_type, plain, len(values), arrays)
        packed, after = _chosen(ggml_type, coder, values, blocks, arrays, sweeps)
    better = errs_more(decode_blocks(ggml_type, kept, values.shape) - values, blocks, after)
    packed[~better] = kept[~better]
    if not are_valid(ggml_type, packed):
        return plain
    return packed.reshape(-1)
