"""Tools: given to the template, found in answers of every known format, and forced by a schema."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import jsonschema
import langchain_openai
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.server import serving
from helpers.support import with_template
from minitron_cli.server import prepare
from minitron_cli.server.answers import ChatAnswer, Choice
from minitron_cli.server.requests import ChatRequest
from minitron_cli.server.streams import Progress
from minitron_cli.server.tools import FORMATS, ToolParser, ToolStream, format_of
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.slot import GenerationRequest
from minitron_engine.generation.slots import Slots
from minitron_engine.generation.steps import GenerationSettings, GenerationStep, Timings
from minitron_engine.isolation.chat_template import ChatTemplate
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "maxItems": 2},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "integer", "minimum": 1, "maximum": 7}},
}
CLOCK = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "d", "parameters": WEATHER},
    },
    {"type": "function", "function": {"name": "clock", "parameters": CLOCK}},
]
KNOWN = {"weather": WEATHER, "clock": CLOCK}
# templates that show the tools, and write calls as their families do
BODY = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }} MARK {% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}\n{% endfor %}"
)
TEMPLATES = {
    "Nemotron": BODY.replace("MARK", "<TOOLCALL>[]</TOOLCALL>"),
    "Nemotron-Mini": BODY.replace("MARK", "<tool> </tool>"),
    "Hermes": BODY.replace("MARK", '<tool_call>{"arguments": 1}</tool_call>'),
    "Mistral": BODY.replace("MARK", "[TOOL_CALLS]"),
    "Llama 3.1": BODY.replace("MARK", '{"name": name, "parameters": dictionary}'),
}
MESSAGES = [{"role": "user", "content": "How is it in Rome?"}]


def parser(name: str, begun: str = "") -> ToolParser:
    return ToolParser(next(each for each in FORMATS if each.name == name), KNOWN, begun)


def test_format_of_knows_every_family() -> None:
    assert {name: format_of(text).name for name, text in TEMPLATES.items()} == {  # type: ignore[union-attr]
        each.name: each.name for each in FORMATS
    }
    assert format_of("{{ messages }}") is None
    assert format_of("{{ tools }} in a way of its own") is None
    assert format_of("{{ tools }} <tool_call>name <arg_key>x</arg_key></tool_call>") is None  # GLM


ROME = {"city": "Rome", "unit": "C", "days": [1]}
CALL = json.dumps({"name": "weather", "arguments": ROME})
LLAMA = json.dumps({"name": "weather", "parameters": ROME})
NEMOTRON_3 = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n"
    "<parameter=unit>\nC\n</parameter>\n<parameter=days>\n[1]\n</parameter>\n</function>\n</tool_call>"
)


@pytest.mark.parametrize(
    ("name", "answer", "text", "calls"),
    [
        ("Hermes", f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>", "Let me see.", 1),
        ("Hermes", f"<tool_call>{CALL}</tool_call>\n<tool_call>\n{CALL}\n</tool_call>", "", 2),
        ("Hermes", f"<tool_call>\n{CALL}", "", 1),  # the closing mark ended it
        ("Hermes", NEMOTRON_3, "", 1),
        ("Nemotron", f"<TOOLCALL>[{CALL}, {CALL}]</TOOLCALL>", "", 2),
        ("Nemotron-Mini", f"<toolcall> {CALL} </toolcall>", "", 1),
        ("Mistral", f"[TOOL_CALLS][{CALL}]", "", 1),
        ("Mistral", f"[{CALL}]", "", 1),  # its mark is a control token
        ("Llama 3.1", LLAMA, "", 1),
        ("Llama 3.1", f"{LLAMA}; {LLAMA}", "", 2),
    ],
)
def test_parser_finds_the_calls_of_every_format(
    name: str, answer: str, text: str, calls: int
) -> None:
    found, called = parser(name).parse(answer)
    assert found == text and len(called) == calls
    assert len({call["id"] for call in called}) == calls
    for call in called:
        assert call["type"] == "function" and call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"]) == ROME


def test_parser_gives_one_call_where_only_one_is_wanted() -> None:
    calls = ToolParser(FORMATS[0], KNOWN, most=1).parse(f"<TOOLCALL>[{CALL}, {CALL}]</TOOLCALL>")
    assert len(calls[1]) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "Nothing to call.",
        '{"temperature": 20}',
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "weather", "argu',
        f"<tool_call>{CALL}</tool_call> and more",
        "[" * 100_000,
    ],
)
def test_parser_leaves_text_that_is_no_call(answer: str) -> None:
    assert parser("Hermes").parse(answer) == (answer, [])


PIECES = st.lists(
    st.sampled_from(["<tool_call>", "</tool_call>", CALL, "<tool", "_call>", " ", "\n", "a", "{"])
    | st.text(max_size=4),
    max_size=8,
)


@given(PIECES, st.sampled_from([each.name for each in FORMATS]))
def test_stream_tells_what_the_parser_finds(pieces: list[str], name: str) -> None:
    stream, answer = ToolStream(parser(name)), "".join(pieces)
    shown = "".join(map(stream.push, pieces))
    rest, calls = stream.finish()
    text, expected = parser(name).parse(answer)
    assert shown + rest == text
    assert [c["function"] for c in calls] == [c["function"] for c in expected]


def test_chat_tells_the_text_before_a_call_and_the_call(nano_llama: Path) -> None:
    """An answer in three steps, whole and as events."""
    request = GenerationRequest(np.zeros(1, np.int32), GenerationSettings(SamplingSettings(seed=1)))
    texts = ("Let me ", "see. <tool_", f"call>\n{CALL}\n</tool_call>")
    reasons = (None, None, "end")
    steps = [
        GenerationStep(text, number, reason, Timings())  # type: ignore[arg-type]
        for number, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    for step in steps:
        request.result.add(step)
    choice = Choice(0, request, tools=parser("Hermes"))
    with open_model(ModelSettings(nano_llama, vocab_only=True)) as model:
        answer = ChatAnswer("nano", model)
        (whole,) = answer.whole([choice])["choices"]
        progress = Progress(choice, answer)
        events = [e for step in steps for e in progress.events(step, step is steps[-1])]
    chunks = [json.loads(line[6:]) for e in events for line in e.splitlines() if line]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert whole["message"]["content"] == "Let me see." and whole["finish_reason"] == "tool_calls"
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    (call,) = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert call["function"] == whole["message"]["tool_calls"][0]["function"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_stream_holds_back_only_what_may_be_a_call() -> None:
    stream = ToolStream(parser("Hermes"))
    assert stream.push("It is <b>warm</b> <to") == "It is <b>warm</b>"
    assert stream.push("day> ok") == " <today> ok"


@pytest.fixture(scope="module")
def hermes(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("hermes") / "nano.gguf"
    with serving(with_template(nano_llama, path, TEMPLATES["Hermes"]), n_ctx=1024) as url:
        yield f"{url}/v1"


class Rendered(ChatTemplate):
    """A template that is rendered in this process, to be quick."""

    def render(self, messages: Any, **more: Any) -> str:
        environment = jinja2.Environment()
        return environment.from_string(self.source).render({"messages": messages} | more)


@pytest.fixture(scope="module")
def slots(nano_llama: Path) -> Iterator[tuple[Model, Slots]]:
    settings = ContextSettings(n_ctx=1024, n_batch=512, n_outputs=1)
    with open_model(ModelSettings(nano_llama)) as model, open_context(model, settings) as context:
        yield model, Slots(context, 1)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_forced_call_follows_the_schema_of_its_function(
    slots: tuple[Model, Slots], name: str
) -> None:
    model, running = slots
    choice = {"type": "function", "function": {"name": "weather"}}
    body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": choice, "seed": 3}
    parsed = prepare.chat(body, model, Rendered(TEMPLATES[name], {}, 1))
    request = GenerationRequest(parsed.prompts[0], parsed.settings[0])
    running.submit(request)
    while not running.idle:
        running.step()
    assert parsed.tools is not None
    text, (call,) = parsed.tools.parse(request.result.text)
    assert text == "" and call["function"]["name"] == "weather"
    jsonschema.validate(json.loads(call["function"]["arguments"]), WEATHER)


def test_tool_choice_decides_whether_there_is_a_call(hermes: str) -> None:
    with openai.OpenAI(base_url=hermes, api_key="none", max_retries=0) as client:
        create = client.chat.completions.create
        asked: Any = {"model": "nano", "messages": MESSAGES, "tools": TOOLS, "seed": 3}
        (choice,) = create(tool_choice="required", **asked).choices
        (call,) = choice.message.tool_calls
        jsonschema.validate(json.loads(call.function.arguments), KNOWN[call.function.name])
        *chunks, last = create(tool_choice="required", stream=True, **asked)
        (delta,) = [d for chunk in chunks for d in chunk.choices[0].delta.tool_calls or []]
        assert (delta.function.name, delta.function.arguments) == (
            call.function.name,
            call.function.arguments,
        )
        assert not any(chunk.choices[0].delta.content for chunk in chunks)
        assert last.choices[0].finish_reason == "tool_calls"
        for choice_of in ({"tool_choice": "none"}, {}):
            (choice,) = create(max_tokens=4, **asked, **choice_of).choices
            assert choice.message.content and not choice.message.tool_calls


def test_langchain_binds_tools(hermes: str) -> None:
    chat = langchain_openai.ChatOpenAI(base_url=hermes, api_key="none", model="nano", seed=1)
    answer = chat.bind_tools(TOOLS, tool_choice="weather").invoke("How is it in Rome?")
    (call,) = answer.tool_calls
    assert call["name"] == "weather"
    jsonschema.validate(call["args"], WEATHER)
    # the call and its result go back to the model
    from langchain_core.messages import HumanMessage, ToolMessage

    result = ToolMessage("sunny", tool_call_id=call["id"])
    following = chat.bind(max_tokens=3).invoke([HumanMessage("Rome?"), answer, result])
    assert following.content


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "tools"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
)
def test_wrong_tools_are_refused(hermes: str, fields: dict[str, Any], parameter: str) -> None:
    with openai.OpenAI(base_url=hermes, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="nano", messages=MESSAGES, extra_body=fields)
        assert caught.value.param == parameter


def test_messages_with_calls_have_their_arguments_as_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    told = [message.for_template() for message in ChatRequest.of({"messages": turns}).messages]
    assert told[0]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"a": 1}}
    assert told[1] == turns[1]
