"""The codewords of the IQ types, as the installed ggml decodes them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_core.gguf import TYPE, TYPE_ID
from minitron_engine.llama.library import decode

Levels = NDArray[np.int8]


@dataclass(frozen=True)
class _Layout:
    """Which bits of a block of 256 weights are the numbers of its codewords of `dims` weights.

    The low eight bits are bytes from byte 2 on: `run` of them every `stride` bytes. The others,
    `bits` for each codeword, begin at byte `high`: `high_run` of them every `high_stride` bits.
    """

    dims: int
    count: int
    run: int = 64
    stride: int = 64
    high: int = 0
    bits: int = 0
    high_run: int = 8
    high_stride: int = 8

    def places(self, codeword: int) -> list[int]:
        """The bits of one codeword's number, the lowest first."""
        byte = 2 + codeword // self.run * self.stride + codeword % self.run
        high = codeword // self.high_run * self.high_stride + codeword % self.high_run * self.bits
        return [8 * byte + k for k in range(8)] + [
            8 * self.high + high + k for k in range(self.bits)
        ]


_LAYOUTS = {
    "iq1_s": _Layout(8, 2048, high=34, bits=3, high_run=4, high_stride=16),
    "iq2_xxs": _Layout(8, 256, run=4, stride=8),
    "iq2_xs": _Layout(8, 512, run=1, stride=2, high=3, bits=1, high_run=1, high_stride=16),
    "iq2_s": _Layout(8, 1024, high=66, bits=2, high_run=4),
    "iq3_xxs": _Layout(4, 256),
    "iq3_s": _Layout(4, 512, high=66, bits=1),
}
_SAME_CODEBOOK = {"iq1_m": "iq1_s"}


def has_codebook(ggml_type: int) -> bool:
    """Whether a type encodes groups of weights as codewords."""
    return _layout_name(ggml_type) in _LAYOUTS


def codeword_levels(ggml_type: int) -> Levels:
    """Levels (0, 1, 2 … for the values in ascending order) of all codewords, [codewords, dims]."""
    name = _layout_name(ggml_type)
    layout = _LAYOUTS[name]
    numbers = np.arange(layout.count).reshape(-1, 256 // layout.dims)
    bits = np.zeros((len(numbers), 8 * TYPE[TYPE_ID[name]].block_bytes), np.uint8)
    bits[:, :16] = np.unpackbits(np.ones(1, "<f2").view(np.uint8), bitorder="little")  # scale 1
    for codeword in range(numbers.shape[1]):
        for k, place in enumerate(layout.places(codeword)):
            bits[:, place] = numbers[:, codeword] >> k & 1
    blocks = np.packbits(bits, axis=1, bitorder="little")
    values = np.empty((layout.count, layout.dims), np.float32)
    decode(TYPE_ID[name], blocks.ctypes.data, values.ctypes.data, values.size)
    return np.searchsorted(np.unique(values), values).astype(np.int8)


def _layout_name(ggml_type: int) -> str:
    name = TYPE[ggml_type].name
    return _SAME_CODEBOOK.get(name, name)
