"""Whether the loaded ggml adds up F16 values in F16, as it does with AVX512-FP16.

Its list of features does not say so. The values of an attention, in heads of 128 numbers or more,
have their weight rounded to F16 there; other kernels for x86 round the sum only.
"""

import ctypes
from ctypes import c_float, c_void_p

import numpy as np

from minitron_engine.llama.library import InitParameters, Tensor, cpu_library, ggml

_F32, _F16 = 0, 1
_WIDTH, _MEMORY = 128, 1 << 20


def adds_in_half() -> bool:
    """Run an attention over two values: zeros, and others with a weight that F16 has to round."""
    base, cpu = ggml(), cpu_library()
    if cpu is None:
        return False
    base.ggml_flash_attn_ext.restype = c_void_p
    base.ggml_flash_attn_ext.argtypes = [*[c_void_p] * 5, *[c_float] * 3]
    values = np.linspace(1, 2, _WIDTH).astype(np.float16)
    keys = np.stack([np.zeros(_WIDTH), np.full(_WIDTH, -np.log(3) / _WIDTH)]).astype(np.float16)
    context = base.ggml_init(InitParameters(_MEMORY, None, False))
    try:
        query, key, value = (
            _tensor(context, data)
            for data in (
                np.ones((1, _WIDTH), np.float32),
                keys,
                np.stack([np.zeros_like(values), values]),
            )
        )
        result = base.ggml_flash_attn_ext(context, query, key, value, None, 1.0, 0.0, 0.0)
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, result)
        cpu.ggml_graph_compute_with_ctx(context, graph, 1)
        found = np.ctypeslib.as_array(
            (c_float * _WIDTH).from_address(Tensor.from_address(result).data)
        ).copy()
    finally:
        base.ggml_free(context)
    weight = np.exp(keys[1].astype(np.float32).sum(dtype=np.float32))
    sums = (found * (1 + weight)).astype(np.float16)
    return bool(np.mean(sums == (values * weight).astype(np.float16)) < 0.9)


def _tensor(context: int, data: np.ndarray) -> int:
    kind = _F16 if data.dtype == np.float16 else _F32
    tensor: int = ggml().ggml_new_tensor_2d(context, kind, *data.shape[::-1])
    ctypes.memmove(Tensor.from_address(tensor).data, data.tobytes(), data.nbytes)
    return tensor
