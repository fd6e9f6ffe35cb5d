"""The command line as a contract: names, exit codes, JSON keys, what goes where."""

from pathlib import Path
from typing import Any

import pytest
import typer

from helpers.support import EXAMPLES, ROOT, fails
from minitron_cli.main import COMMANDS, app


def test_version_names_what_decides_results(minitron: Any) -> None:
    ran = minitron("--version")
    assert ran.code == 0
    for name in ("minitron 0.", "llama-cpp-python 0.3.36", "llama.cpp 0c1e57098"):
        assert name in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_examples_and_common_options(
    command: str, minitron: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = minitron(command, "--help")
    assert ran.code == 0
    usage, _, rest = ran.out.rpartition("Examples")
    assert f"{command} [OPTIONS]" in usage and f"minitron {command} " in f"{rest} "
    assert {"--verbose", "--quiet", "--help"} <= {word for word in usage.split()}
    assert command == "rpc-server" or "--json" in usage


def test_help_lists_every_command_with_the_summary_of_its_own_help(
    minitron: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    lines = minitron("--help").out.splitlines()
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        summary = " ".join(command.help.split("\n\n")[0].split())
        assert any(f" {name} " in line and summary in line for line in lines), name


def test_main_names_every_command_module() -> None:
    modules = {path.stem for path in (ROOT / "src/minitron_cli/commands").glob("[a-z]*.py")}
    assert modules == {name.replace("-", "_") for name in COMMANDS}


def test_convert_writes_what_inspect_shows(minitron: Any, tmp_path: Path) -> None:
    path = tmp_path / "nano.gguf"
    ran = minitron("convert", EXAMPLES / "nano-llama", "-o", path, "--outtype", "bf16", "--json")
    assert ran.code == 0, ran.err
    assert ran.document["paths"] == [str(path)] and ran.document["outtype"] == "bf16"
    again = minitron("convert", EXAMPLES / "nano-llama", "-o", path, "--outtype", "bf16", "--json")
    assert again.code == 0 and again.document == ran.document | {"kept": True}
    other = minitron("convert", EXAMPLES / "nano-llama", "-o", path)
    fails(other, 1, "nano.gguf", "--force")
    path.write_bytes(path.read_bytes())
    fails(
        minitron("convert", EXAMPLES / "nano-llama", "-o", path, "--outtype", "bf16"), 1, "exists"
    )
    minitron("convert", EXAMPLES / "nano-llama", "-o", path, "--outtype", "bf16", "--force")
    described = minitron("inspect", path, "--tensors", "--json").document
    assert described["architecture"] == "llama" and described["level"] == "BF16"
    assert described["types"] == {"bf16": 44, "f32": 14}
    assert len(described["tensors"]) == 58
    assert described["metadata"]["tokenizer.ggml.tokens"]["length"] == 4096
    assert "llama.attention.key_length" in minitron("inspect", path).out


def test_doctor_reports_devices(minitron: Any) -> None:
    ran = minitron("doctor", "--json")
    assert ran.code == 0
    assert ran.document["problems"] == [] and ran.document["threads"] >= 1
    assert any(device["kind"] == "cpu" for device in ran.document["devices"])
    assert "all is well" in minitron("doctor").out


def test_doctor_never_shows_a_token(minitron: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_marked_secret")
    for arguments in (("doctor",), ("doctor", "--json")):
        ran = minitron(*arguments)
        assert "marked_secret" not in ran.out + ran.err


def test_main_reports_a_bug_in_one_line(
    minitron: Any, nano_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron_quant.inspect import description

    def fail(*_: object) -> None:
        raise RuntimeError("impossible")

    monkeypatch.setattr(description, "describe", fail)
    ran = minitron("inspect", nano_llama)
    assert ran.code == 1 and ran.out == ""
    first, hint = ran.err.strip().splitlines()
    assert first == "error: RuntimeError: impossible" and "MINITRON_DEBUG=1" in hint
    monkeypatch.setenv("MINITRON_DEBUG", "1")
    with pytest.raises(RuntimeError, match="impossible"):
        minitron("inspect", nano_llama)
