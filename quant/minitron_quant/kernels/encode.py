"""Rows to blocks: by the kernels where a type's kernel has proved itself, else by ggml."""

import ctypes
import logging
from functools import cache, partial
from threading import Lock
from typing import cast

import numpy as np
from numpy.typing import NDArray

from minitron_core.gguf import TYPE, TYPE_ID, row_bytes
from minitron_core.kernels import INSTRUCTIONS, Kernels, kernels
from minitron_engine.llama.library import ggml
from minitron_quant.kernels.codebooks import codeword_levels, has_codebook
from minitron_quant.kernels.self_check import encode_by_ggml, passes

Values = NDArray[np.float32]
Bytes = NDArray[np.uint8]

KERNEL_TYPES = frozenset(
    TYPE_ID[name]
    for name in (
        *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K"),
        *("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs"),
    )
)
_LOG = logging.getLogger("minitron.kernels")
_codebooks = Lock()  # the library has one set of them, which types share


class Encoder:
    """Encoders of all types: a type is prepared when it is first used."""

    def __init__(self, loaded: Kernels) -> None:
        self._library, self._widest = loaded.library, loaded.level
        self._levels: dict[int, int] = {}
        self._locks = {number: Lock() for number in KERNEL_TYPES}

    def quantize_rows(
        self, ggml_type: int, values: Values, blocks: Bytes, importance: Values | None
    ) -> None:
        """Encode [rows, columns] into `blocks`, with the bytes of ggml_quantize_chunk.

        importance: [columns], or None. All arrays are contiguous. Releases the GIL.
        """
        level = self.level_of(ggml_type)
        if not level or not self._encode(level, ggml_type, values, blocks, importance):
            encode_by_ggml(ggml_type, values, blocks, importance)

    def level_of(self, ggml_type: int) -> int:
        """The instruction set whose kernel encodes a type; 0: ggml does. Checks it at first use."""
        if self._library is None or ggml_type not in KERNEL_TYPES:
            return 0
        level = self._levels.get(ggml_type)
        if level is None:
            with self._locks[ggml_type]:
                level = self._levels.get(ggml_type)
                if level is None:
                    level = self._levels[ggml_type] = self._prepared(ggml_type)
        return level

    def failed(self) -> list[int]:
        """The types whose kernels do not give ggml's bytes; checks all that were not used yet."""
        if self._library is None:
            return []
        return [number for number in sorted(KERNEL_TYPES) if not self.level_of(number)]

    def _prepared(self, ggml_type: int) -> int:
        if has_codebook(ggml_type) and not self._set_codebook(ggml_type):
            return 0
        for level in range(self._widest, 0, -1):
            if passes(ggml_type, partial(self._blocks, level, ggml_type)):
                return level
            _LOG.warning(
                "the %s kernel for %s does not give the bytes of the installed ggml, "
                "so a slower encoder is used",
                INSTRUCTIONS[level],
                TYPE[ggml_type].name,
            )
        return 0

    def _set_codebook(self, ggml_type: int) -> bool:
        levels = codeword_levels(ggml_type)
        with _codebooks:
            failed = cast("ctypes.CDLL", self._library).kernels_set_codebook(
                ggml_type, levels.ctypes.data, *levels.shape
            )
        return not failed

    def _blocks(
        self, level: int, ggml_type: int, values: Values, importance: Values | None
    ) -> Bytes:
        blocks = np.zeros(len(values) * row_bytes(ggml_type, values.shape[1]), np.uint8)
        self._encode(level, ggml_type, values, blocks, importance)
        return blocks

    def _encode(
        self, level: int, ggml_type: int, values: Values, blocks: Bytes, importance: Values | None
    ) -> bool:
        left_to_ggml: int = cast("ctypes.CDLL", self._library).kernels_encode(
            level,
            ggml_type,
            values.ctypes.data,
            blocks.ctypes.data,
            *values.shape,
            None if importance is None else importance.ctypes.data,
            ctypes.cast(ggml().ggml_quantize_chunk, ctypes.c_void_p),
        )
        return left_to_ggml >= 0


def quantize_rows(
    ggml_type: int, values: Values, blocks: Bytes, importance: Values | None = None
) -> None:
    """See Encoder.quantize_rows; with the kernels of this process."""
    encoder().quantize_rows(ggml_type, values, blocks, importance)


@cache
def encoder() -> Encoder:
    """The one of this process."""
    return Encoder(kernels())
