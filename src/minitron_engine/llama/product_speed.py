"""How fast llama.cpp multiplies on this machine's processors, for forecasts."""

import ctypes
import time
from typing import Any

from minitron_engine.llama.library import InitParameters, Tensor, cpu_library, ggml

_F32, _F16 = 0, 1
_SIDE, _TOKENS = 768, 512
_MEMORY = 16 << 20  # the operands, the product, and the inputs as F16
_RUNS = 3


def product_operations_per_second() -> float | None:
    """Of F16 weights with the inputs of 512 tokens, in one thread; None where ggml hides it."""
    base, cpu = ggml(), cpu_library()
    if cpu is None:
        return None
    context = base.ggml_init(InitParameters(_MEMORY, None, False))
    try:
        weights = base.ggml_new_tensor_2d(context, _F16, _SIDE, _SIDE)
        inputs = base.ggml_new_tensor_2d(context, _F32, _SIDE, _TOKENS)
        for tensor, size in ((weights, 2 * _SIDE**2), (inputs, 4 * _SIDE * _TOKENS)):
            ctypes.memset(Tensor.from_address(tensor).data, 0, size)
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, base.ggml_mul_mat(context, weights, inputs))
        seconds = min(_seconds(cpu, context, graph) for _ in range(_RUNS))
    finally:
        base.ggml_free(context)
    return 2.0 * _SIDE**2 * _TOKENS / max(seconds, 1e-6)


def _seconds(cpu: Any, context: int, graph: int) -> float:
    started = time.thread_time()
    cpu.ggml_graph_compute_with_ctx(context, graph, 1)
    return time.thread_time() - started
