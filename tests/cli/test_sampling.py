"""Every knob of sampling, by its option: equal to recordings of llama-completion."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer

from helpers.instruction_sets import recorded, same_answer
from helpers.support import fails
from minitron_cli.main import app
from minitron_cli.options.groups import expanded
from minitron_cli.options.sampling import SamplingOptions, with_options
from minitron_core.errors import Damaged, Usage
from minitron_engine.generation.generate import generate, prompt_tokens
from minitron_engine.generation.sampler import open_sampler
from minitron_engine.generation.sampling import (
    SAMPLERS,
    SAMPLING_OPTIONS,
    SamplingSettings,
    settings_for,
)
from minitron_engine.generation.sampling_options import SamplingOption, sampling_options
from minitron_engine.generation.steps import Generation, GenerationSettings, collect
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model

RECORDED = recorded("sampling.json")
MODELS = tuple(RECORDED["models"])
Contexts = dict[str, Context]
# what depends on many tokens before; other settings choose each token by one distribution
LOOKS_BACK = re.compile(r"last-n [1-9]|dry|penalty|mirostat|adaptive")


@pytest.fixture(scope="module")
def contexts(nano_llama: Path, nano_nemotron: Path) -> Iterator[Contexts]:
    """Both models loaded once, with the context size and the threads of the recordings."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                open_context(
                    stack.enter_context(open_model(ModelSettings(path))),
                    ContextSettings(n_ctx=1024, n_batch=2048, threads=2),
                )
            )
            for name, path in zip(MODELS, (nano_llama, nano_nemotron), strict=True)
        }


def given(*words: str) -> dict[str, Any]:
    """What `minitron generate` hands to the engine for these options."""
    command: Any = typer.main.get_command(app)
    context = command.commands["generate"].make_context("generate", ["m.gguf", *words])
    values = {name: context.params[name] for name in SamplingOptions.__dataclass_fields__}
    paths = {name: Path(values[name]) for name in ("grammar", "json_schema") if values[name]}
    return SamplingOptions(**(values | paths)).given()


def replay(context: Context, sampling: SamplingSettings, prompt: str, length: int) -> Generation:
    context.clear()
    tokens = prompt_tokens(context.model, prompt)
    return collect(generate(context, tokens, GenerationSettings(sampling, length)))


@pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.harden)], ids=["few", "whole"]
)
@pytest.mark.parametrize("setting", RECORDED["models"][MODELS[0]]["settings"])
@pytest.mark.parametrize("name", MODELS)
def test_sampling_equals_llama_completion(
    name: str, setting: str, whole: bool, contexts: Contexts, tmp_path: Path
) -> None:
    entry = RECORDED["models"][name]["settings"][setting]
    (tmp_path / "words.gbnf").write_text(RECORDED["grammar"], encoding="utf-8")
    words = entry["options"].replace("words.gbnf", str(tmp_path / "words.gbnf")).split()
    model = contexts[name].model
    # the windows are the same for both models
    whole |= name == MODELS[0] and LOOKS_BACK.search(entry["options"]) is not None
    length = entry["length"] if whole else 64
    settings = GenerationSettings(settings_for(model, given(*words)), length)
    same_answer(contexts[name], settings, prompt_tokens(model, entry["prompt"]), entry)


def test_generate_ends_when_the_grammar_leaves_nothing(contexts: Contexts) -> None:
    context = contexts["nano-llama"]
    # after yes only the end is allowed, and the end is forbidden
    sampling = SamplingSettings(seed=1, grammar='root ::= "yes"', ignore_eos=True)
    result = replay(context, sampling, "Answer:", 8)
    assert (result.text, result.finish_reason) == ("yes", "grammar")
    sampling = SamplingSettings(seed=1, grammar="root ::= <[999999]>")
    assert replay(context, sampling, "Answer:", 8).finish_reason == "grammar"


def test_logit_bias_decides(contexts: Contexts) -> None:
    model = contexts["nano-llama"].model
    (token,) = model.tokenize(" Zz"[:2], add_special=False, parse_special=False)[-1:].tolist()
    sampling = SamplingSettings(seed=1, logit_bias=((token, 1000.0),))
    assert replay(contexts["nano-llama"], sampling, "The", 4).tokens == [token] * 4
    with (
        pytest.raises(Usage, match="no token"),
        open_sampler(model, SamplingSettings(seed=1, logit_bias=((model.n_vocab, 1.0),))),
    ):
        pass


def test_settings_for_takes_what_a_model_recommends(
    monkeypatch: pytest.MonkeyPatch, contexts: Contexts
) -> None:
    model = contexts["nano-llama"].model
    said = {"general.sampling.temp": "0.3", "general.sampling.sequence": "top-k;temperature"}
    monkeypatch.setattr(model, "metadata", lambda key: said.get(key, ""))
    settings = settings_for(model, {"seed": 1, "top_k": 7})
    assert (settings.temperature, settings.top_k) == (0.3, 7)
    assert settings.samplers == ("top_k", "temperature")
    assert settings_for(model, {"seed": 1, "temperature": 0.0}).temperature == 0.0
    said["general.sampling.temp"] = "warm"
    with pytest.raises(Damaged, match="warm"):
        settings_for(model, {"seed": 1})


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": float("nan")},
        {"repeat_penalty": 0.0},
        {"repeat_last_n": -1},
        {"dry_penalty_last_n": 1 << 40},
        {"mirostat": 3},
        {"samplers": ("top_k", "magic")},
    ],
)
def test_sampling_settings_refuse_impossible_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(Usage):
        SamplingSettings(seed=1, **wrong)


def test_sampling_options_need_one_row_for_a_new_one() -> None:
    @dataclass(frozen=True)
    class More(SamplingSettings):
        dummy: float = field(
            default=0.5,
            metadata={"type": float, "help": "A new one.", "high": 1, "sampler": "dummy"},
        )

    row = sampling_options(More)[-1]
    assert (row.name, row.request, row.shown_default, row.sampler) == (
        *("dummy", "dummy", "0.5", "dummy"),
    )

    @with_options(row)
    class Options:
        pass

    command: Any = typer.main.get_command(app_of(expanded(command_with(Options))))
    (option,) = [each for each in command.params if each.name == "dummy"]
    assert (option.opts, option.help, option.type.max) == (["--dummy"], "A new one.", 1)


def command_with(group: Any) -> Any:
    def command(options: Any) -> None:
        pass

    command.__annotations__["options"] = group
    return command


def app_of(command: Any) -> typer.Typer:
    found = typer.Typer()
    found.command()(command)
    return found


@pytest.mark.parametrize("row", SAMPLING_OPTIONS, ids=lambda row: row.name)
def test_sampling_options_reach_the_command_line(row: SamplingOption) -> None:
    command: Any = typer.main.get_command(app)
    (option,) = [each for each in command.commands["generate"].params if each.name == row.name]
    assert row.help in option.help
    assert set(row.flags) <= set(option.opts)


def test_sampling_options_become_settings(tmp_path: Path) -> None:
    assert given("--seed", "0") == {"seed": 0, "ignore_eos": False}
    assert given("-l", "15043+1", "--logit-bias", "7-inf")["logit_bias"] == (
        (15043, 1.0),
        (7, float("-inf")),
    )
    assert given("--dry-sequence-breaker", "none")["dry_sequence_breakers"] == ()
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "integer"}}}')
    assert given("--json-schema", str(schema))["json_schema"] == schema.read_text()
    settings = SamplingSettings(**given("--samplers", ";".join(SAMPLERS)))
    assert settings.samplers == SAMPLERS
    for words in (("-l", "x+1"), ("-l", "5"), ("--mirostat", "3"), ("--temp", "-1")):
        with pytest.raises((typer.BadParameter, Usage)):
            given(*words)


class TestGenerate:
    def test_a_prompt_cache_is_used_again(
        self, minitron: Any, nano_llama: Path, nano_nemotron: Path, tmp_path: Path
    ) -> None:
        cache = tmp_path / "prompt.cache"
        words = ("The old house stood in", "-n", 4, "--seed", 1, "--prompt-cache", cache)
        first = minitron("generate", nano_llama, *words, "--json")
        second = minitron("generate", nano_llama, *words, "--json")
        assert (first.code, second.code) == (0, 0)
        before, after = json.loads(first.out), json.loads(second.out)
        assert before["prompt_tokens_reused"] == 0
        assert after["prompt_tokens_reused"] == after["prompt_tokens"] - 1
        assert after["text"] == before["text"]
        kept = cache.read_bytes()
        other = minitron("generate", nano_nemotron, *words, "--prompt-cache-ro")
        assert other.code == 0 and "another model" in other.err
        assert cache.read_bytes() == kept

    def test_guesses_are_counted(self, minitron: Any, nano_llama: Path) -> None:
        words = ("one two three one two three one", "-n", 96, "--temp", 0)
        plain = json.loads(minitron("generate", nano_llama, *words, "--json").out)
        for guesses in (("--lookup",), ("--draft", nano_llama, "--draft-min-p", 0.2)):
            found = json.loads(minitron("generate", nano_llama, *words, *guesses, "--json").out)
            assert found["tokens"] == plain["tokens"]
            assert 0 < found["accepted"] <= found["drafted"]
        assert "accepted" not in plain
        fails(
            minitron("generate", nano_llama, "x", "--lookup", "--draft", nano_llama), 2, "exclude"
        )

    def test_a_full_context_is_the_contracts_length(self, minitron: Any, nano_llama: Path) -> None:
        ran = minitron("generate", nano_llama, "The", "-n", -1, "-c", 256, "--temp", 0, "--json")
        document = json.loads(ran.out)
        assert document["finish_reason"] == "length"
        assert document["prompt_tokens"] + len(document["tokens"]) == 256

    def test_bad_adapters_and_grammars(
        self, minitron: Any, nano_llama: Path, tmp_path: Path
    ) -> None:
        bad = tmp_path / "bad.gguf"
        bad.write_bytes(b"GGUF\3\0\0\0")
        fails(minitron("generate", nano_llama, "x", "--lora", bad), 8, "bad.gguf")
        fails(minitron("generate", nano_llama, "x", "--lora", nano_llama), 8, "adapter")
        fails(minitron("generate", nano_llama, "x", "--lora", tmp_path / "no.gguf"), 3, "no.gguf")
        bad.write_text("root ::= (")
        fails(minitron("generate", nano_llama, "x", "--grammar", bad), 2, "line 1")

    def test_a_model_of_nothing_but_nan(
        self, minitron: Any, nano_llama: Path, tmp_path: Path
    ) -> None:
        data = bytearray(nano_llama.read_bytes())
        data[-2_000_000:] = b"\x00\x7e" * 1_000_000  # f16 NaN
        path = tmp_path / "nan.gguf"
        path.write_bytes(data)
        fails(minitron("generate", path, "The"), 8, "NaN")
