"""Clients that people use beside OpenAI's own, and what that one sends, as it was recorded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.request import Request, urlopen

import langchain_openai
import pytest

from helpers.server import serving
from helpers.support import with_template
from minitron_cli.server.prepare import ServerDefaults

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "openai_requests.json").read_text())
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
WITH_TOOLS = TEMPLATE + '{% if tools %}<tool_call>{"arguments": {{ tools | tojson }}}{% endif %}'


@pytest.fixture(scope="module")
def model(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(nano_llama, tmp_path_factory.mktemp("clients") / "nano.gguf", TEMPLATE)


@pytest.fixture(scope="module")
def chat(model: Path) -> Iterator[Any]:
    """LangChain's ChatOpenAI."""
    with serving(model) as url:
        yield langchain_openai.ChatOpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            model="nano",
            temperature=0,
            max_retries=0,
            stream_usage=True,
        )


def test_langchain_gets_an_answer_and_its_usage(chat: Any) -> None:
    answer = chat.invoke([("system", "Be brief."), ("user", "Who are you?")], max_tokens=8)
    assert answer.content and answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 8


def test_langchain_streams_the_same_answer(chat: Any) -> None:
    whole = chat.invoke("Who are you?", max_tokens=8)
    pieces = list(chat.stream("Who are you?", max_tokens=8))
    assert len(pieces) > 4
    assert "".join(piece.content for piece in pieces) == whole.content
    total = sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces)
    assert total == 8


def test_langchain_gets_structured_answers(chat: Any) -> None:
    from pydantic import BaseModel

    class Verdict(BaseModel):
        good: bool
        size: Literal["small", "large"]

    structured = chat.with_structured_output(Verdict, method="json_schema")
    assert isinstance(structured.invoke("Is it good?"), Verdict)


@pytest.fixture(scope="module")
def strict(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that refuses parameters it does not know, and answers shortly."""
    path = with_template(model, tmp_path_factory.mktemp("strict") / "nano.gguf", WITH_TOOLS)
    defaults = ServerDefaults(n_predict=4, strict=True)
    with serving(path, n_ctx=1024, pooling="mean", defaults=defaults) as url:
        yield url


@pytest.mark.parametrize("number", range(len(RECORDED)))
def test_what_openais_client_sends_is_answered(strict: str, number: int) -> None:
    """Recorded from openai 3.54: streams, formats, tools, log-probabilities, vectors, responses."""
    path, body = RECORDED[number]["path"], json.dumps(RECORDED[number]["body"]).encode()
    request = Request(strict + path, body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        assert answer.status == 200 and "X-Minitron-Ignored" not in answer.headers
        text = answer.read().decode()
    if RECORDED[number]["body"].get("stream"):
        assert text.endswith("data: [DONE]\n\n") and '"error"' not in text
    else:
        assert json.loads(text)["object"] in (
            *("chat.completion", "text_completion", "list", "response"),
        )
