"""Requests of any shape: every one is either understood or refused, none is a mistake of ours."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minitron_cli.server import prepare
from minitron_cli.server.embeddings import EmbeddingRequest
from minitron_cli.server.errors import BadRequest
from minitron_cli.server.prepare import ServerDefaults
from minitron_cli.server.requests import MOST_CHOICES, ChatRequest
from minitron_cli.server.responses_api import ResponsesRequest
from minitron_cli.server.token_routes import DetokenizeRequest, TokenizeRequest
from minitron_cli.server.validation import Strict, parse
from minitron_core.errors import MinitronError
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.isolation.chat_template import ChatTemplate
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model

ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["text", "json_object", "json_schema", "user", "object"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "schema", "json_schema", "1"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
FIELDS = [
    "n",
    "best_of",
    "stream",
    "stream_options",
    "stop",
    "logit_bias",
    "response_format",
    "grammar",
    "max_tokens",
    "echo",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "presence_penalty",
    "repeat_penalty",
    "repeat_last_n",
    "samplers",
    "dry_sequence_breakers",
    "xtc_threshold",
    "ignore_eos",
    "chat_template_kwargs",
    "tools",
    "tool_choice",
    "logprobs",
    "top_logprobs",
    "parallel_tool_calls",
]
QUIETLY = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def model(nano_llama: Path) -> Iterator[Model]:
    with open_model(ModelSettings(nano_llama, vocab_only=True)) as model:
        yield model


class Plain(ChatTemplate):
    """A template that is not rendered in a process, to be quick."""

    def render(self, messages: Any, **more: Any) -> str:
        return "\n".join(message["content"] for message in messages)


@QUIETLY
@given(prompt=ANYTHING, fields=st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=4))
def test_completion_parses_or_refuses(model: Model, prompt: Any, fields: dict[str, Any]) -> None:
    try:
        found = prepare.completion({"prompt": prompt, **fields}, model)
    except MinitronError as error:
        assert str(error) and error.exit_code == 2
        return
    assert found.prompts and all(len(tokens) for tokens in found.prompts)
    assert len(found.settings) * len(found.prompts) <= MOST_CHOICES
    assert len(found.echoed) == len(found.prompts)


def test_completion_takes_every_sampling_option_of_llama_server(model: Model) -> None:
    body = {
        "prompt": "The",
        **{"typical_p": 0.5, "dynatemp_exponent": 2, "mirostat": 2, "mirostat_tau": 3.5},
        **{"mirostat_eta": 0.2, "xtc_probability": 0.1, "dry_multiplier": 0.8, "seed": 7},
        **{"samplers": ["top_k", "temperature"], "dry_sequence_breakers": [";"]},
        **{"temperature": 0.9, "top_p": 0.8},
    }
    sampling = prepare.completion(body, model).settings[0].sampling
    expected = SamplingSettings(
        seed=7,
        temperature=0.9,
        top_p=0.8,
        typical=0.5,
        dynatemp_exp=2.0,
        mirostat=2,
        mirostat_ent=3.5,
        mirostat_lr=0.2,
        xtc_probability=0.1,
        dry_multiplier=0.8,
        samplers=("top_k", "temperature"),
        dry_sequence_breakers=(";",),
    )
    assert sampling == expected


@pytest.mark.parametrize(
    "wrong", [{"samplers": "top_k"}, {"samplers": [1]}, {"mirostat": 3}, {"typical_p": "0.5"}]
)
def test_completion_refuses_a_wrong_sampling_option(model: Model, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        prepare.completion({"prompt": "The", **wrong}, model)
    assert caught.value.parameter in wrong


@QUIETLY
@given(messages=ANYTHING, fields=st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=4))
def test_chat_parses_or_refuses(model: Model, messages: Any, fields: dict[str, Any]) -> None:
    body = json.loads(json.dumps({"messages": messages, **fields}))
    try:
        found = prepare.chat(body, model, Plain("", {}, 1))
    except MinitronError as error:
        assert str(error) and error.exit_code == 2
        return
    assert len(found.prompts) == 1 and found.is_chat


@QUIETLY
@given(data=st.data())
@pytest.mark.parametrize(
    "kind", [ResponsesRequest, EmbeddingRequest, TokenizeRequest, DetokenizeRequest, ChatRequest]
)
def test_every_request_is_understood_or_refused(kind: type[Strict], data: st.DataObject) -> None:
    names = st.sampled_from([*kind.model_fields, "unheard"])
    body = data.draw(st.dictionaries(names, ANYTHING, max_size=4))
    try:
        found = kind.of(body)
    except BadRequest as error:
        assert str(error) and "\n" not in str(error)
        return
    assert set(found.ignored) <= {"unheard"}


@QUIETLY
@given(body=st.binary(max_size=30) | st.text(max_size=30).map(str.encode))
def test_parse_takes_any_bytes(body: bytes) -> None:
    try:
        assert isinstance(parse(body), dict)
    except BadRequest as error:
        assert str(error)


@pytest.mark.parametrize("body", [b'{"prompt": "\\ud800"}', b"\xff", b"[" * 100_000])
def test_parse_refuses_half_surrogates(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(body)


def chat(model: Model, *messages: dict[str, Any], **fields: Any) -> prepare.ParsedRequest:
    return prepare.chat({"messages": list(messages), **fields}, model, Plain("", {}, 1))


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_chat_takes_minus_one_as_no_limit(model: Model, name: str) -> None:
    (settings,) = chat(model, USER, **{name: -1}).settings
    assert settings.n_predict == -1


@pytest.mark.parametrize("seed", [7, 2**32 - 1, 2**40 + 5, -(2**63), 2**63 - 1])
def test_chat_takes_seeds_of_64_bits(model: Model, seed: int) -> None:
    (settings,) = chat(model, USER, seed=seed).settings
    assert settings.sampling.seed == seed % 2**32 % (2**32 - 1)


def test_chat_takes_a_random_seed_for_minus_one(model: Model) -> None:
    seeds = {chat(model, USER, seed=-1).settings[0].sampling.seed for _ in range(3)}
    assert len(seeds) > 1


@pytest.mark.parametrize("said", [{"content": None}, {}, {"content": None, "tool_calls": []}])
def test_chat_takes_turns_that_only_call_tools(model: Model, said: dict[str, Any]) -> None:
    assistant = {"role": "assistant", "tool_calls": [{"id": "1"}], **said}
    assert len(chat(model, USER, assistant, USER).prompts) == 1


def test_chat_joins_parts_by_line_breaks(model: Model) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    both = chat(model, {"role": "user", "content": parts}).prompts[0]
    assert both.tolist() == chat(model, {"role": "user", "content": "one\ntwo"}).prompts[0].tolist()


@pytest.mark.parametrize(
    "form",
    [
        {"json_schema": {"type": "null"}},
        {"response_format": {"type": "json_object", "schema": {"type": "null"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "null"}}}},
    ],
)
def test_chat_takes_schemas_of_every_client(model: Model, form: dict[str, Any]) -> None:
    (settings,) = chat(model, USER, **form).settings
    assert json.loads(settings.sampling.json_schema) == {"type": "null"}


def test_chat_names_a_keyword_that_is_not_supported(model: Model) -> None:
    with pytest.raises(BadRequest, match="uniqueItems"):
        chat(model, USER, json_schema={"type": "array", "uniqueItems": True})


USER_ONLY = {"messages": [USER]}


@pytest.mark.parametrize(
    ("fields", "parameter", "said"),
    [
        ({"messages": 1}, "messages", "messages must be a list"),
        ({"messages": []}, "messages", "messages must not be empty"),
        ({}, "messages", "messages is required"),
        (
            {"messages": [{"role": "king"}]},
            "messages[0].role",
            "messages[0].role must be developer",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0]", "needs a content that is a text"),
        ({**USER_ONLY, "n": True}, "n", "n must be an integer from 1 to 64"),
        ({**USER_ONLY, "top_p": 2}, "top_p", "top_p must be a number from 0 to 1"),
        ({**USER_ONLY, "seed": 2**64}, "seed", "to 18446744073709551615"),
        ({**USER_ONLY, "stream": "yes"}, "stream", "stream must be true or false"),
        ({**USER_ONLY, "logit_bias": {"1": "x"}}, "logit_bias.1", "logit_bias.1 must be a number"),
        ({**USER_ONLY, "logit_bias": {"größe": "x"}}, "logit_bias.größe", "logit_bias.größe must"),
        (
            {**USER_ONLY, "logit_bias": {"a\n'b": "x"}},
            "logit_bias.a\\n'b",
            "a\\n'b must be a number",
        ),
        ({**USER_ONLY, "größe": 1}, "größe", "'größe' is not a parameter"),
        ({**USER_ONLY, "response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ],
)
def test_chat_refuses_with_one_line_that_names_the_field(
    model: Model, fields: dict[str, Any], parameter: str, said: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        prepare.chat(fields, model, Plain("", {}, 1), ServerDefaults(strict=True))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.parameter == parameter
