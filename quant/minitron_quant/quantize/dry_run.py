"""The dry run of llama_model_quantize: llama.cpp decides the types of a level.

It runs in a child process: llama.cpp may abort on unexpected input, and the answer is in its log,
which must not mix with other messages.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitron_core.errors import MinitronError, Unsupported
from minitron_core.gguf import KeyValue, open_shards
from minitron_engine.process.aborts import is_memory, no_memory
from minitron_quant.quantize.options import MAX_TEXT, QuantizeOptions

LevelRequest = tuple[int, QuantizeOptions]  # llama_ftype and the options of a level


def dry_runs(path: Path, requests: Sequence[LevelRequest], imatrix: bool) -> list[list[str]]:
    """The lines that llama.cpp logs for each level of a model; nothing is written.

    imatrix: whether there is one; its values do not matter. Raises Unsupported, OutOfResources.
    """
    question = {
        "path": str(path),
        "imatrix": imatrix,
        "levels": [_level(ftype, options) for ftype, options in requests],
    }
    # -P: do not import from the current folder
    child = subprocess.run(
        [sys.executable, "-P", "-m", "minitron_quant.quantize.dry_run_child"],
        input=json.dumps(question),
        capture_output=True,
        encoding="utf-8",
        env={
            **os.environ,
            "GGML_NO_BACKTRACE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        check=False,
    )
    if child.returncode != 0:
        raise _refusal(path, f"llama.cpp stopped while it planned {path}", child.stderr)
    answer = json.loads(child.stdout)
    if "error" in answer:
        reason = answer["error"]
        raise _refusal(path, f"llama.cpp cannot quantize {path}: {reason}", reason)
    lines: list[list[str]] = answer["lines"]
    return lines


def _refusal(path: Path, message: str, log: str) -> MinitronError:
    open_shards(path)  # Damaged if it was truncated in the meantime
    return no_memory() if is_memory(log) else Unsupported(message)


def _level(ftype: int, options: QuantizeOptions) -> dict[str, Any]:
    parameters = {
        "dry_run": True,
        "ftype": ftype,
        "pure": options.pure,
        "quantize_output_tensor": not options.leave_output,
        "allow_requantize": options.allow_requantize,
        "keep_split": options.keep_split,  # determines the order of the tensors
        "output_tensor_type": options.output_type,
        "token_embedding_type": options.embedding_type,
    }
    return {
        "parameters": {name: value for name, value in parameters.items() if value is not None},
        "tensor_types": options.tensor_types,
        "overrides": [_override(entry) for entry in options.overrides],
    }


def _override(entry: KeyValue) -> tuple[str, Any]:
    value = entry.value
    if isinstance(value, str):
        value = value.encode()[:MAX_TEXT].decode(errors="ignore")
    return entry.key, value
