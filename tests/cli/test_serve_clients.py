"""Clients that people use beside OpenAI's own, and what that one sends, as it was recorded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import langchain_openai
import pytest

from helpers.server import serving
from helpers.support import with_template

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


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
