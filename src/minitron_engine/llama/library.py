"""ctypes over libggml-base: the functions and the one struct that llama-cpp-python lacks.

Declarations follow ggml.h and ggml-backend.h of the llama.cpp inside llama-cpp-python 0.3.36
(commit 0c1e57098). `check_layout` compares the mirrored struct with the loaded library.
"""

import ctypes
from ctypes import c_bool, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from typing import Any

from minitron_core.errors import MinitronError
from minitron_engine.llama.binding import api

# ggml's commit is compiled into libggml-base; llama.cpp's is that of the pinned binding
LLAMA_CPP_COMMIT = "0c1e57098"
PINNED_BINDING = "0.3.36"

OP_MUL_MAT = 29
OP_MUL_MAT_ID = 30
_TENSOR_OVERHEAD = 368  # ggml_tensor_overhead(): 336 bytes of struct and 32 of the object header


class Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h."""


Tensor._fields_ = [
    ("type", c_int),
    ("buffer", c_void_p),
    ("ne", c_int64 * 4),
    ("nb", c_size_t * 4),
    ("op", c_int),
    ("op_params", c_int32 * 16),
    ("flags", c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", c_void_p),
    ("view_offs", c_size_t),
    ("data", c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", c_void_p),
    ("padding", ctypes.c_char * 8),
]

_ToFloat = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)


class TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = (
        ("type_name", c_char_p),
        ("blck_size", c_int64),
        ("blck_size_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", c_void_p),
        ("from_float_ref", c_void_p),
    )


class InitParameters(ctypes.Structure):
    """struct ggml_init_params of ggml.h."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


_BASE_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_quantize_chunk": (
        c_size_t,
        [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p],
    ),
    "ggml_quantize_init": (None, [c_int]),
    "ggml_validate_row_data": (c_bool, [c_int, c_void_p, c_size_t]),
    "ggml_get_type_traits": (ctypes.POINTER(TypeTraits), [c_int]),
    "ggml_fp16_to_fp32_row": (None, [c_void_p, c_void_p, c_int64]),
    "ggml_bf16_to_fp32_row": (None, [c_void_p, c_void_p, c_int64]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_op_name": (c_char_p, [c_int]),
    "ggml_version": (c_char_p, []),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_backend_buffer_is_host": (c_bool, [c_void_p]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_init": (c_void_p, [InitParameters]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
    "ggml_backend_dev_name": (c_char_p, [c_void_p]),
    "ggml_backend_dev_description": (c_char_p, [c_void_p]),
    "ggml_backend_dev_memory": (
        None,
        [c_void_p, ctypes.POINTER(c_size_t), ctypes.POINTER(c_size_t)],
    ),
    "ggml_backend_dev_type": (c_int, [c_void_p]),
    "ggml_set_abort_callback": (c_void_p, [c_void_p]),
}
_REGISTRY_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_dev_count": (c_size_t, []),
    "ggml_backend_dev_get": (c_void_p, [c_size_t]),
    "ggml_backend_dev_by_name": (c_void_p, [c_char_p]),
    "ggml_backend_reg_by_name": (c_void_p, [c_char_p]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_register": (None, [c_void_p]),
}
# declared again: the binding's own declaration makes an object of the pointer
_LLAMA_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_get_logits_ith": (c_void_p, [c_void_p, c_int32]),
}
_CPU_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_cpu_init": (None, []),
    "ggml_graph_compute_with_ctx": (c_int, [c_void_p, c_void_p, c_int]),
    "ggml_cpu_fp16_to_fp32": (None, [c_void_p, c_void_p, c_int64]),
    "ggml_cpu_bf16_to_fp32": (None, [c_void_p, c_void_p, c_int64]),
}


def _declared(functions: dict[str, tuple[Any, list[Any]]]) -> ctypes.CDLL:
    """libllama's handle with functions declared; it also finds those of the libraries it loads.

    The wheel has each of those three times, as copies: one loaded by its plain name would be a
    second instance, with its own devices and callbacks. Raises AttributeError for a missing symbol.
    """
    library = ctypes.CDLL(api._lib._name, handle=api._lib._handle)
    for symbol, (result, arguments) in functions.items():
        function = getattr(library, symbol)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def ggml() -> ctypes.CDLL:
    """libggml-base with its functions declared, after `check_layout`."""
    base = _declared(_BASE_FUNCTIONS)
    check_layout(base)
    return base


def ggml_version() -> str:
    """The version that is compiled into libggml-base."""
    return str(ggml().ggml_version().decode())


@cache
def registry() -> ctypes.CDLL:
    """libggml with the functions of its registry of backends and devices."""
    return _declared(_REGISTRY_FUNCTIONS)


@cache
def llama() -> ctypes.CDLL:
    """libllama with the functions that every token needs."""
    return _declared(_LLAMA_FUNCTIONS)


def check_layout(base: ctypes.CDLL) -> None:
    """Raise MinitronError for a library with another tensor struct: reads would be garbage."""
    expected = {OP_MUL_MAT: b"MUL_MAT", OP_MUL_MAT_ID: b"MUL_MAT_ID"}
    sizes = base.ggml_tensor_overhead() == _TENSOR_OVERHEAD == ctypes.sizeof(Tensor) + 32
    if sizes and all(base.ggml_op_name(op) == name for op, name in expected.items()):
        return
    raise MinitronError(
        f"the loaded llama.cpp is not the one of llama-cpp-python {PINNED_BINDING}: "
        "its tensors have another layout",
        f"install the pinned version: pip install llama-cpp-python=={PINNED_BINDING}",
    )


@cache
def cpu_library() -> ctypes.CDLL | None:
    """libggml-cpu; None in a build that loads its backends at run time."""
    try:
        found = _declared(_CPU_FUNCTIONS)
    except AttributeError:
        return None
    found.ggml_cpu_init()  # fills the table that it uses where the processor has no instruction
    return found


@cache
def _half_decoders() -> dict[int, Any]:
    """The functions for f16 and bf16: libggml-cpu's, which are ten times faster, or libggml-base's.

    Both give the same bits.
    """
    cpu = cpu_library()
    if cpu is None:
        return {1: ggml().ggml_fp16_to_fp32_row, 30: ggml().ggml_bf16_to_fp32_row}
    return {1: cpu.ggml_cpu_fp16_to_fp32, 30: cpu.ggml_cpu_bf16_to_fp32}


@cache
def _decoder(type_id: int) -> Any:
    base = ggml()
    if type_id in _half_decoders():
        return _half_decoders()[type_id]
    to_float = base.ggml_get_type_traits(type_id).contents.to_float
    return _ToFloat(to_float) if to_float else None


def decode(type_id: int, source: int, target: int, count: int) -> bool:
    """Decode `count` weights at address `source` to float32 at address `target`.

    Returns False where ggml has no decoder for the type. Releases the GIL.
    """
    function = _decoder(type_id)
    if function is None:
        return False
    function(source, target, count)
    return True
