"""What asks llama.cpp for a dry run, in this process or as a child: JSON in, its log out.

It imports as little as possible, and no numpy: every quantization waits for it.
"""

import ctypes
import json
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from minitron_engine.llama import devices, log
from minitron_engine.llama.binding import api
from minitron_engine.llama.overrides import Override, as_array

_one_at_a_time = threading.Lock()  # the log is everyone's


def main() -> None:
    """Answer the request on stdin to stdout: {"lines": [[…] for each level]}, or {"error": …}."""
    json.dump(answer(json.load(sys.stdin)), sys.stdout)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The answer to a question of dry_run.py, see there."""
    path = os.fsencode(question["path"])
    devices.start()
    lines = []
    with _one_at_a_time:
        for level in question["levels"]:
            logged = _dry_run(path, question["imatrix"], **level)
            if logged is None:
                return {"error": log.last_error()}
            lines.append(logged)
    return {"lines": lines}


def _dry_run(
    path: bytes,
    imatrix: bool,
    parameters: dict[str, Any],
    tensor_types: Sequence[tuple[str, int]],
    overrides: Sequence[Override],
) -> list[str] | None:
    """The lines that llama.cpp logs; None if it fails.

    parameters: fields of llama_model_quantize_params.
    """
    given = api.llama_model_quantize_default_params()
    for name, value in parameters.items():
        setattr(given, name, value)
    # ctypes keeps no references: these arrays must live as long as the parameters are used
    given.imatrix = entries = _presence() if imatrix else None
    given.tt_overrides = patterns = _tensor_types(tensor_types)
    given.kv_overrides = keys = as_array(overrides)
    with log.capture(shown=False) as lines:
        status = api.llama_model_quantize(path, b"", ctypes.byref(given))
    del entries, patterns, keys
    return lines if status == 0 else None


def _presence() -> Any:
    """An importance matrix of one entry: only its presence matters."""
    entries = (api.llama_model_imatrix_data * 2)()  # an entry without a name ends it
    entries[0].name, entries[0].size = b"none", 1
    values: Any = (ctypes.c_float * 1)(1.0)
    entries[0].data = values
    return entries


def _tensor_types(tensor_types: Sequence[tuple[str, int]]) -> Any:
    if not tensor_types:
        return None
    patterns = (api.llama_model_tensor_override * (len(tensor_types) + 1))()
    for slot, (pattern, ggml_type) in zip(patterns, tensor_types, strict=False):
        slot.pattern, slot.type = pattern.encode(), ggml_type
    return patterns


if __name__ == "__main__":
    main()
