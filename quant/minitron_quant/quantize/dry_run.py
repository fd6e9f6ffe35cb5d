"""llama_model_quantize's dry run: the one place where llama.cpp tells the types of a level.

It happens in a child process: llama.cpp may abort on what it did not expect, and its log, which
carries the answer, is then not mixed with anything else.
"""

import ctypes
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from minitron_convert.gguf_file import KeyValue, ValueType
from minitron_engine.errors import Unsupported
from minitron_quant.quantize.options import QuantizeOptions

_TAG_INT, _TAG_FLOAT, _TAG_BOOL, _TAG_STRING = range(4)  # llama_model_kv_override_type


Wanted = tuple[int, QuantizeOptions]  # a level (llama_ftype), and how it is to be made


def dry_runs(path: Path, wanted: Sequence[Wanted], imatrix: bool) -> list[list[str]]:
    """The lines that llama.cpp logs for each level of a model; nothing is written.

    imatrix: whether there is one; its values do not matter here. Raises Unsupported.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_dry_runs, str(path), tuple(wanted), imatrix).result()
    except BrokenProcessPool as error:
        raise Unsupported(f"llama.cpp stopped while it planned {path}") from error


def _dry_runs(path: str, wanted: tuple[Wanted, ...], imatrix: bool) -> list[list[str]]:
    from minitron_engine import devices

    devices.start()
    return [_dry_run(path, ftype, options, imatrix) for ftype, options in wanted]


def _dry_run(path: str, ftype: int, options: QuantizeOptions, imatrix: bool) -> list[str]:
    from minitron_engine import log
    from minitron_engine.binding import api

    parameters = api.llama_model_quantize_default_params()
    parameters.dry_run = True
    parameters.ftype = ftype
    parameters.pure = options.pure
    parameters.quantize_output_tensor = not options.leave_output
    parameters.allow_requantize = options.allow_requantize
    parameters.keep_split = options.keep_split  # decides the order of the tensors
    if options.output_type is not None:
        parameters.output_tensor_type = options.output_type
    if options.embedding_type is not None:
        parameters.token_embedding_type = options.embedding_type
    # ctypes keeps no references: the arrays must live here as long as the parameters are used
    parameters.imatrix = entries = _presence(api) if imatrix else None
    parameters.tt_overrides = patterns = _tensor_types(api, options)
    parameters.kv_overrides = overrides = _overrides(api, options.overrides)
    with log.capture() as lines:
        status = api.llama_model_quantize(path.encode(), b"", ctypes.byref(parameters))
    if status != 0:
        raise Unsupported(f"llama.cpp cannot quantize {path}: {log.last_error()}")
    del entries, patterns, overrides
    return list(lines)


def _presence(api: Any) -> Any:
    entries = (api.llama_model_imatrix_data * 2)()  # ends with an entry of no name
    entries[0].name, entries[0].size = b"none", 1
    entries[0].data = (ctypes.c_float * 1)(1.0)
    return entries


def _tensor_types(api: Any, options: QuantizeOptions) -> Any:
    if not options.tensor_types:
        return None
    patterns = (api.llama_model_tensor_override * (len(options.tensor_types) + 1))()
    for slot, (pattern, kind) in zip(patterns, options.tensor_types, strict=False):
        slot.pattern, slot.type = pattern.encode(), kind
    return patterns


def _overrides(api: Any, entries: Sequence[KeyValue]) -> Any:
    if not entries:
        return None
    overrides = (api.llama_model_kv_override * (len(entries) + 1))()  # ends with an empty key
    for slot, entry in zip(overrides, entries, strict=False):
        slot.key = entry.key.encode()
        if entry.type == ValueType.STRING:
            slot.tag, slot.value.val_str = _TAG_STRING, entry.value.encode()[:127]
        elif entry.type == ValueType.BOOL:
            slot.tag, slot.value.val_bool = _TAG_BOOL, entry.value
        elif entry.type == ValueType.FLOAT32:
            slot.tag, slot.value.val_f64 = _TAG_FLOAT, entry.value
        else:
            slot.tag, slot.value.val_i64 = _TAG_INT, entry.value
    return overrides
