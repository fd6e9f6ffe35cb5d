"""Options as llama.cpp's users type them."""

from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from helpers.support import fails
from minitron_cli.main import app
from minitron_cli.options.llama_names import NAMES, translated
from minitron_core.errors import Usage
from minitron_engine.llama import devices

COMMANDS: Any = typer.main.get_command(app)


def params(command: str) -> list[Any]:
    found: list[Any] = COMMANDS.commands[command].params
    return found


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("m.gguf -ngl 9 -t 2", "m.gguf --gpu-layers 9 --threads 2"),
        ("-m m.gguf -p Hi -n 5", "m.gguf --n-predict 5 Hi"),
        ("-m m.gguf --prompt=Hi --max-tokens=5", "m.gguf --n-predict=5 Hi"),
        ("m.gguf -n -2 --seed -1", "m.gguf --n-predict -1"),
        ("m.gguf --ctx-size 64 -ctk q8_0", "m.gguf --ctx 64 --cache-type-k q8_0"),
        ("m.gguf --stop -t x", "m.gguf --stop -t x"),
        ("m.gguf -- -t -m", "m.gguf -- -t -m"),
        ("m.gguf --unheard 3", "m.gguf --unheard 3"),
    ],
)
def test_translated_puts_llama_cpps_names_into_ours(typed: str, ours: str) -> None:
    assert translated(typed.split(), params("generate")) == ours.split()


@pytest.mark.parametrize(
    ("command", "word"), [("ppl", "-ctk"), ("imatrix", "-fa"), ("generate", "-foo"), ("ppl", "-qx")]
)
def test_translated_takes_no_word_for_several_short_options(command: str, word: str) -> None:
    for words in ([word], [word, "q8_0"], ["m.gguf", word, "-q"]):
        with pytest.raises(Usage, match=f"no such option: {word}"):
            translated(words, params(command))


def test_translated_leaves_short_flags_and_attached_numbers_together() -> None:
    words = ["m.gguf", "-qv", "-c512", "-f", "-1"]
    assert translated(words, params("ppl")) == words


def test_options_without_a_gpu_warn(
    minitron: Any, short_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: [])
    given = ("generate", short_llama, "x", "-n", "1", "--threads", "1")
    assert "warning: --gpu-layers 20: " in minitron(*given, "-ngl", "20").err
    assert "warning" not in minitron(*given, "-ngl", "0").err + minitron(*given).err


def test_environment_gives_defaults(
    minitron: Any, short_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINITRON_CTX", "256")
    monkeypatch.setenv("MINITRON_THREADS", "0")
    given = ("generate", short_llama, "x " * 5000, "-n", "1")
    ran = minitron(*given)
    assert ran.code == 2 and "MINITRON_THREADS" in ran.err
    fails(minitron(*given, "--threads", "1"), 2, "256")


def test_translated_takes_minus_one_chunks_as_all() -> None:
    assert translated(["m.gguf", "--chunks", "-1"], params("ppl")) == ["m.gguf"]


@given(st.lists(st.sampled_from(["m.gguf", "--temp", "0", "--stop", "x", "--ctx", "64", "--"])))
def test_translated_keeps_our_own_words(words: list[str]) -> None:
    assert translated(words, params("generate")) == words


@pytest.mark.parametrize("name", sorted(set(NAMES.values())))
def test_names_are_options_of_some_command(name: str) -> None:
    assert any(name in param.opts for command in COMMANDS.commands for param in params(command))


def test_generate_runs_as_llama_cli_is_typed(minitron: Any, short_llama: Path) -> None:
    typed = ("-m", short_llama, "-p", "The old", "-n", "3", "--temp", "0", "-t", "1", "-ngl", "0")
    ours = (short_llama, "The old", "--n-predict", "3", "--temp", "0", "--threads", "1")
    assert minitron("generate", *typed).out == minitron("generate", *ours).out


def test_generate_takes_the_trained_context_for_zero(minitron: Any, nano_nemotron: Path) -> None:
    fails(minitron("generate", nano_nemotron, "x " * 5000, "-c", "0", "-n", "1"), 2, "4096")
