"""Two-sided GPTQ: later rows compensate for the errors of earlier ones, as columns do within a row.

An error E of a matrix costs tr(H_O E H Eᵀ). GPTQ against H, the inputs' covariance, chooses the
codes of a few rows; with H_O = R Rᵀ and U = R / diag R, the targets of the rows after them move by
Uᵀ times their errors (YAQA, arXiv 2505.22988). Rows of one diagonal block of H_O are encoded one
run after another, blocks side by side in threads.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from minitron_core import stop
from minitron_core.gguf import row_bytes
from minitron_quant.array_backend import Bytes, Doubles, Floats
from minitron_quant.blocks import decode_blocks
from minitron_quant.gptq.cholesky import BlockFactor, factor_block

# as a share of the mean diagonal of H_O, which is noisier than H
_DAMPING = 0.1
# rows encoded together, which do not compensate for each other
_RUN = 16


class EncodeRows(Protocol):
    """Encodes rows, each by itself."""

    def __call__(self, values: Floats) -> Bytes:
        """values: [rows, columns]; returns their blocks."""


def row_factors(blocks: Sequence[tuple[int, Doubles]]) -> list[BlockFactor]:
    """The diagonal blocks of an output Hessian, factored; with the first row of each."""
    # neighbors, such as those that rope turns together, are better not encoded together
    return [factor_block(start, block, _DAMPING, span=1) for start, block in blocks]


def encode_two_sided(
    ggml_type: int,
    values: Floats,
    factors: Sequence[BlockFactor],
    encode_rows: EncodeRows,
    threads: int,
) -> Bytes:
    """The rows [rows, columns] of a weight, encoded in an order that lets later ones compensate.

    encode_rows: to the type. Raises KeyboardInterrupt after a request to stop.
    """
    found = np.empty((len(values), row_bytes(ggml_type, values.shape[1])), np.uint8)

    def encode_block(factor: BlockFactor) -> None:
        rows = factor.start + factor.order
        ordered = values[rows]
        errors = np.zeros_like(ordered)
        for start in range(0, len(rows), _RUN):
            stop.check()
            run = slice(start, start + _RUN)
            moved = ordered[run] + factor.unit[:start, run].T @ errors[:start]
            blocks = encode_rows(moved)
            found[rows[run]] = blocks.reshape(len(moved), -1)
            errors[run] = ordered[run] - decode_blocks(ggml_type, blocks, moved.shape)

    with ThreadPoolExecutor(threads, "encode") as pool:
        list(pool.map(encode_block, factors))
    return found.reshape(-1)
