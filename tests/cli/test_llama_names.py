"""Options as llama.cpp's users type them."""

from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from helpers.support import fails
from minitron_cli.main import app
from minitron_cli.options.llama_names import NAMES, TRAINED, translated
from minitron_cli.options.parameters import gpu_layers
from minitron_cli.output import Output
from minitron_core.errors import Usage
from minitron_core.gguf import open_gguf
from minitron_engine.llama import devices
from minitron_quant.chunking import ChunkSettings

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
        ("m.gguf -n -2", "m.gguf --n-predict -1"),
        ("m.gguf --n-predict=-2 --threads=-1", "m.gguf --n-predict=-1"),
        ("m.gguf -t 0 -ub 64", "m.gguf --ubatch 64"),
        ("m.gguf --ubatch-size=64 -ngl -1", "m.gguf --ubatch=64 --gpu-layers -1"),
        ("m.gguf -c 0", f"m.gguf --ctx {TRAINED}"),
        ("m.gguf --ctx-size=0", f"m.gguf --ctx={TRAINED}"),
        ("m.gguf --stop --ctx 0", "m.gguf --stop --ctx 0"),
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


@pytest.mark.parametrize("command", ["ppl", "imatrix", "quantize"])
@pytest.mark.parametrize("typed", [["--chunks", "-1"], ["--chunks=-1"]])
def test_translated_takes_minus_one_chunks_as_all(command: str, typed: list[str]) -> None:
    assert translated(["m.gguf", *typed], params(command)) == ["m.gguf"]
    (chunks,) = (param for param in params(command) if "--chunks" in param.opts)
    assert chunks.default is None  # which is all of them


@pytest.mark.parametrize("command", ["generate", "chat", "imatrix"])
def test_translated_draws_a_seed_for_minus_one(command: str) -> None:
    drawn = {translated(["m.gguf", "--seed", "-1"], params(command))[-1] for _ in range(9)}
    assert len(drawn) > 1 and all(seed.isdecimal() for seed in drawn)


WITH_CONTEXT = ("generate", "chat", "serve", "imatrix", "ppl", "sensitivity", "advise")


@pytest.mark.parametrize("command", WITH_CONTEXT)
def test_context_of_zero_is_the_trained_one(command: str, nano_nemotron: Path) -> None:
    required = {"sensitivity": ["-f", "x"], "ppl": ["-f", "x"], "advise": ["--vram", "1G"]}
    words = [str(nano_nemotron), "-c", "0", *required.get(command, [])]
    context = COMMANDS.commands[command].make_context(command, words)
    assert context.params["ctx"] == 4096


@pytest.mark.parametrize("command", ["generate", "chat", "serve", "imatrix", "ppl", "tasks"])
def test_gpu_layers_and_threads_take_llama_cpps_numbers(command: str) -> None:
    known = [name for param in params(command) for name in param.opts]
    assert {"--gpu-layers", "--threads"} <= set(known)
    typed = translated(["m.gguf", "-ngl", "99", "-t", "-1"], params(command))
    assert typed == ["m.gguf", "--gpu-layers", "99"]


def test_gpu_layers_takes_llama_cpps_numbers_for_words() -> None:
    out = Output()
    assert [gpu_layers(text, out) for text in ("-1", "-2", "0", "99")] == ["auto", "all", 0, 99]
    with pytest.raises(Usage):
        gpu_layers("-3", out)


@given(st.lists(st.sampled_from(["m.gguf", "--temp", "1", "--stop", "x", "--ctx", "64", "--"])))
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


def test_generate_notes_a_context_beyond_the_trained_one(minitron: Any, short_llama: Path) -> None:
    words = ("generate", short_llama, "The", "-n", "1")
    trained = open_gguf(short_llama).get("llama.context_length")
    longer = minitron(*words, "-c", trained + 256)
    assert (
        longer.code == 0
        and f"longer than the {trained} that the model was trained on" in longer.err
    )
    assert "trained on" not in minitron(*words, "-c", trained).err


@pytest.mark.parametrize("command", ["generate", "chat", "serve", "bench", "ppl", "imatrix"])
def test_translated_knows_the_micro_batch(command: str) -> None:
    typed = translated(["m.gguf", "-ub", "64"], params(command))
    assert typed == ["m.gguf", "--ubatch", "64"]
    assert "--ubatch" in [name for param in params(command) for name in param.opts]


def test_chunks_are_decoded_in_micro_batches() -> None:
    settings = ChunkSettings(n_ubatch=64)
    assert settings.context().n_ubatch == 64 and settings.part_of(4) == 16
