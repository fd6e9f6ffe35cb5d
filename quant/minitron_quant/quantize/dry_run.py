"""The dry run of llama_model_quantize: llama.cpp decides the types of a level.

llama.cpp may abort on unexpected input. A command explains that and ends, so it asks in its own
process; for a program that uses the library, a child process asks.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitron_core.errors import MinitronError, Unsupported
from minitron_core.gguf import KeyValue, open_shards
from minitron_engine.process import aborts
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
    answer = _in_this_process(path, question) if aborts.are_handled() else _in_child(path, question)
    if "error" in answer:
        reason = answer["error"]
        raise _refusal(path, f"llama.cpp cannot quantize {path}: {reason}", reason)
    lines: list[list[str]] = answer["lines"]
    return lines


def _in_this_process(path: Path, question: dict[str, Any]) -> dict[str, Any]:
    from minitron_quant.quantize.dry_run_child import answer

    with aborts.explaining(lambda reason: _stopped(path, reason)):
        return answer(question)


def _in_child(path: Path, question: dict[str, Any]) -> dict[str, Any]:
    import subprocess

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
        raise _stopped(path, child.stderr)
    answer: dict[str, Any] = json.loads(child.stdout)
    return answer


def _stopped(path: Path, log: str) -> MinitronError:
    return _refusal(path, f"llama.cpp stopped while it planned {path}", log)


def _refusal(path: Path, message: str, log: str) -> MinitronError:
    try:
        open_shards(path)
    except MinitronError as damage:  # it was truncated in the meantime
        return damage
    return aborts.no_memory() if aborts.is_memory(log) else Unsupported(message)


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
