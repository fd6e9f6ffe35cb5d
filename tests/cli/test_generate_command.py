"""minitron generate as a user meets it: its answer, what it reads, what it obeys."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def test_generate_prints_text_and_json(minitron: Any, nano_llama: Path) -> None:
    ran = minitron("generate", nano_llama, "The old house", "-n", 12, "--temp", 0, "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    assert set(document) == {
        "model",
        "prompt",
        "text",
        "tokens",
        "finish_reason",
        "seed",
        "prompt_tokens",
        "prompt_tokens_per_second",
        "prompt_tokens_reused",
        "tokens_per_second",
        "time_to_first_token_s",
        "device",
    }
    assert len(document["tokens"]) == 12 and document["finish_reason"] == "length"
    plain = minitron("generate", nano_llama, "The old house", "-n", 12, "--temp", 0)
    assert plain.out == document["text"] + "\n" and plain.err == ""
    late = minitron(
        "generate", nano_llama, "The old house", "-n", 12, "--temp", 0, "--no-stream", "--echo"
    )
    assert late.out == "The old house" + document["text"] + "\n"


def test_generate_reads_a_pipe_and_obeys_a_schema(nano_llama: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"a": {"type": "boolean"}}, '
        '"required": ["a"], "additionalProperties": false}'
    )
    command = [sys.executable, "-m", "minitron_cli", "generate", nano_llama]
    command += ["--json-schema", schema, "--seed", "1", "--json"]
    ran = subprocess.run(command, input="Say it:\n", capture_output=True, text=True, check=True)
    document = json.loads(ran.stdout)
    assert document["prompt"] == "Say it:" and document["seed"] == 1
    assert isinstance(json.loads(document["text"])["a"], bool)
