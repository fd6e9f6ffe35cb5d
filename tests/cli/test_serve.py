"""minitron serve, through OpenAI's own client: answers, streams, errors, clients that misbehave."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from helpers.instruction_sets import certain
from helpers.support import Served, fails, quantize, with_template
from minitron_engine.generation.generate import prompt_tokens
from minitron_engine.llama.context import open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

KEY = "sk-of-the-tests"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "{{ m.content }}\n{% endfor %}"
)
GREEDY: dict[str, Any] = {"model": "nano", "temperature": 0}
PROMPTS = ("The old house", "It was", "When the door of the room", "She", "A dog")


@pytest.fixture(scope="module")
def model(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(nano_llama, tmp_path_factory.mktemp("served") / "nano.gguf", TEMPLATE)


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[Served]:
    """A server in a process of its own, as the command starts it."""
    words = ("--port", 0, "--ctx", 256, "--threads", 1, "--waiting", 60, "--parallel", 3)
    process = subprocess.Popen(
        [sys.executable, "-m", "minitron_cli", "serve", str(model), *map(str, words)],
        env={**os.environ, "MINITRON_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    url = process.stdout.readline().strip()
    assert url, process.stderr.read()
    yield Served(url, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == "" and "Traceback" not in err and KEY not in err


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=served.url, api_key=KEY, max_retries=0, timeout=60) as found:
        yield found


@pytest.fixture(scope="module")
def sure(model: Path) -> Iterator[Callable[[str, int], str]]:
    """The engine's greedy answer, as far as what else is in a batch cannot change it."""
    with (
        open_model(ModelSettings(model)) as loaded,
        open_context(loaded, ContextSettings(n_ctx=256, n_batch=512)) as context,
    ):

        def text(prompt: str, length: int) -> str:
            tokens = certain(context, prompt_tokens(loaded, prompt).tolist(), length)
            assert len(tokens) > length / 2
            return b"".join(map(loaded.piece, tokens)).decode()

        yield text


def test_serve_completes_as_the_engine_does(client: Any, sure: Callable[[str, int], str]) -> None:
    prompt = PROMPTS[3]
    text = sure(prompt, 12)
    answer = client.completions.create(prompt=prompt, max_tokens=12, **GREEDY)
    assert answer.object == "text_completion" and answer.model == "nano"
    assert answer.choices[0].text.startswith(text)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == 2
    assert answer.usage.completion_tokens == 12
    stream = client.completions.create(
        prompt=prompt, max_tokens=12, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks).startswith(text)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.choices == [] and last.usage.completion_tokens == 12


def test_serve_answers_chats(client: Any, sure: Callable[[str, int], str]) -> None:
    messages = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "The king."},
        {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
    ]
    expected = sure("Who are you?\nThe king.\nWhere?\n", 8)
    asked = GREEDY | {"messages": messages, "max_completion_tokens": 8}
    answer = client.chat.completions.create(**asked)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content.startswith(expected)
    chunks = list(client.chat.completions.create(stream=True, **asked))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.startswith(expected)
    # what the server computed before is not computed again
    again = client.chat.completions.create(**asked)
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_serve_takes_choices_stops_echo_and_formats(client: Any) -> None:
    several = client.completions.create(model="x", prompt=["The", "It"], n=2, seed=4, max_tokens=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text != several.choices[1].text
    # a seed gives the same texts for the same shape of batch
    same = client.completions.create(model="x", prompt=["The", "It"], n=2, seed=4, max_tokens=2)
    assert [choice.text for choice in same.choices] == [choice.text for choice in several.choices]
    stopped = client.completions.create(prompt="The old house", stop=" house", echo=True, **GREEDY)
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == "The old house of the"
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    # without further properties, of which a model may write any number
    schema["additionalProperties"] = False
    answer = client.chat.completions.create(
        messages=[{"role": "user", "content": "?"}],
        max_tokens=160,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        **GREEDY,
    )
    assert json.loads(answer.choices[0].message.content)["a"] in (1, 2)


def test_serve_shows_models_and_health(client: Any, served: Served) -> None:
    (found,) = client.models.list().data
    assert found.id == "nano" and client.models.retrieve("nano").id == "nano"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    status, body = ask(served, "GET", "/health")
    assert status == 200 and json.loads(body) == {"status": "ok"}


def ask(served: Served, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
    """A request by hand: status and body."""

    connection = HTTPConnection(*served.address, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("completions", b"{", "JSON"),
        ("completions", b"[]", "object"),
        ("completions", b"{}", "prompt"),
        ("completions", {"prompt": [99999999]}, "token"),
        ("completions", {"prompt": "x", "temperature": "hot"}, "temperature"),
        ("completions", {"prompt": "x", "temperature": float("nan")}, "temperature"),
        ("completions", {"prompt": "x", "max_tokens": -5}, "max_tokens"),
        ("completions", {"prompt": "x", "stream": "yes"}, "stream"),
        ("completions", {"prompt": "x", "stop": [1]}, "stop"),
        ("completions", {"prompt": "x", "n": 1000}, "n must"),
        ("completions", {"prompt": "x", "logit_bias": {"999999": 1}}, "logit_bias"),
        ("completions", {"prompt": "x", "logprobs": 30}, "logprobs must"),
        ("completions", {"prompt": "x", "suffix": "y"}, "not supported"),
        ("completions", {"prompt": "x", "grammar": "root ::= ("}, "grammar"),
        ("completions", {"prompt": "word " * 400}, "takes 256"),
        ("completions", {"prompt": "word " * 400, "stream": True}, "takes 256"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "king"}]}, "role"),
        ("chat/completions", {"messages": [{"role": "user", "content": 1}]}, "content"),
        (
            "chat/completions",
            {"messages": [{"role": "system", "content": "x"}]},
            "no system messages",
        ),
        ("chat/completions", {"messages": [{"role": "user"}], "tools": [1]}, "content"),
    ],
)
def test_serve_refuses_bad_requests(served: Served, path: str, body: Any, word: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    status, answer = ask(served, "POST", f"/v1/{path}", data, **headers)
    assert status == 400
    error = json.loads(answer)["error"]
    assert word in error["message"] and error["type"] == "invalid_request_error"


def test_serve_refuses_wrong_keys_and_hosts(served: Served, client: Any) -> None:
    stranger = openai.OpenAI(base_url=served.url, api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    assert ask(served, "GET", "/v1/models")[0] == 401
    # a web page, under a name that it made point here, or with a form
    assert ask(served, "GET", "/health", Host="evil.example")[0] == 400
    bearer = f"Bearer {KEY}"
    status, body = ask(served, "POST", "/v1/completions", b"{}", Authorization=bearer)
    assert status == 400 and b"Content-Type" in body
    assert ask(served, "GET", "/nowhere")[0] == 404
    assert ask(served, "GET", "/v1/completions")[0] == 405
    # more answers at once than may wait
    with pytest.raises(openai.InternalServerError) as refused:
        client.completions.create(prompt="The", n=64, max_tokens=1, **GREEDY)
    assert refused.value.status_code == 503


def test_serve_answers_fifty_clients_at_once(
    served: Served, client: Any, sure: Callable[[str, int], str]
) -> None:
    """Whole and streamed, all get what they would get alone."""
    alone = [sure(prompt, 8) for prompt in PROMPTS]

    async def one(friend: Any, number: int) -> str:
        asked = GREEDY | {"prompt": PROMPTS[number % 5], "max_tokens": 8}
        if number % 2:
            stream = await friend.completions.create(stream=True, **asked)
            return "".join([chunk.choices[0].text async for chunk in stream])
        answer = await friend.completions.create(**asked)
        return str(answer.choices[0].text)

    async def everybody() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served.url, api_key=KEY, max_retries=0) as friend:
            return list(await asyncio.gather(*(one(friend, number) for number in range(50))))

    for text, expected in zip(asyncio.run(everybody()), alone * 10, strict=True):
        assert text.startswith(expected)


def test_serve_survives_clients_that_misbehave(served: Served, client: Any) -> None:
    def request(body: dict[str, Any], length: int | None = None) -> socket.socket:
        data = json.dumps(body).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length or len(data)}\r\n\r\n"
        )
        connection = socket.create_connection(served.address, timeout=30)
        connection.sendall(head.encode() + data)
        return connection

    endless = {"prompt": "The", "max_tokens": 2000, "stream": True, "ignore_eos": True}
    silent = [request(endless) for _ in range(3)]  # never read what they asked for
    unfinished = [request({"prompt": "x"}, length=1000) for _ in range(3)]
    for _ in range(6):
        leaving = request(endless)
        leaving.recv(100)
        leaving.close()
    waiting = request(endless | {"stream": False})
    waiting.close()
    started = time.monotonic()
    answer = client.completions.create(prompt=PROMPTS[0], max_tokens=4, **GREEDY)
    assert answer.usage.completion_tokens == 4
    assert time.monotonic() - started < 20
    for connection in (*silent, *unfinished):
        connection.close()
    assert client.completions.create(prompt="It", max_tokens=2, **GREEDY).usage.total_tokens > 2


def test_serve_refuses_wrong_usage(
    minitron: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fails(minitron("serve", model, "--port", port), 1, str(port), "--port")
    fails(minitron("serve", "absent.gguf", "--port", 0), 3, "absent.gguf")
    assert "Examples" in minitron("serve", "--help").out
    for name in [name for name in sys.modules if name.startswith("minitron_cli.serv")]:
        monkeypatch.delitem(sys.modules, name)
    for missing in ("pydantic", "uvicorn"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            fails(minitron("serve", model), 1, missing, "minitron[serve]")


def test_serve_says_null_usage_in_all_chunks_but_the_last(client: Any) -> None:
    chunks = client.completions.create(
        prompt="The", stream=True, max_tokens=3, stream_options={"include_usage": True}, **GREEDY
    )
    usages = [chunk.model_dump(exclude_unset=True).get("usage", "missing") for chunk in chunks]
    assert usages[-1]["completion_tokens"] == 3 and set(map(str, usages[:-1])) == {"None"}


def test_serve_has_a_code_for_prompts_beyond_the_context(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt="word " * 600, **GREEDY)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("origin", "allowed"), [("http://localhost:3000", True), ("https://example.org", False)]
)
def test_serve_answers_the_preflight_of_own_pages_only(
    served: Served, origin: str, allowed: bool
) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    connection = HTTPConnection(*served.address, timeout=30)
    connection.request("OPTIONS", "/v1/chat/completions", headers=asked)
    answer = connection.getresponse()
    connection.close()
    assert (answer.getheader("Access-Control-Allow-Origin") == origin) is allowed


def test_serve_takes_defaults_drafts_a_template_and_a_log(nano_llama: Path, tmp_path: Path) -> None:
    """A server with its other options: what requests leave open, and what is written down."""
    template, log = tmp_path / "own.jinja", tmp_path / "requests.jsonl"
    template.write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    draft = quantize(nano_llama, tmp_path, "Q8_0")["Q8_0"].path
    words = ("--port", 0, "--ctx", 256, "--threads", 1, "--parallel", 2, "--draft", draft)
    words += (
        "--draft-min-p",
        0.1,
        "--temp",
        0,
        "-n",
        24,
        "--chat-template",
        template,
        "--request-log",
        log,
        "--strict",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "minitron_cli", "serve", str(nano_llama), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        url = process.stdout.readline().strip()
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            messages = [{"role": "user", "content": "The old house stood"}]
            first, again = (
                client.chat.completions.create(model="m", messages=messages) for _ in range(2)
            )
            # greedy by default, with the default number of tokens, some of them drafted
            assert first.choices[0].message.content == again.choices[0].message.content
            assert first.usage.completion_tokens == 24
            assert first.timings["draft_n_accepted"] > 0
            with pytest.raises(openai.BadRequestError, match="unheard"):
                client.completions.create(model="m", prompt="x", extra_body={"unheard": 1})
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 200, 400]
    assert lines[0]["completion_tokens"] == 24 and lines[0]["path"] == "/v1/chat/completions"
    assert "old house" not in log.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--samplers", "nonsense"), "nonsense"),
        (("--logit-bias", "99999999+1"), "99999999"),
        (("--request-log", "nowhere/log"), "nowhere"),
        (("--draft", "x.gguf", "--lookup"), "exclude"),
    ],
)
def test_serve_refuses_wrong_defaults_at_the_start(
    minitron: Any, model: Path, words: tuple[str, ...], said: str
) -> None:
    ran = minitron("serve", model, "--port", 0, *words)
    fails(ran, ran.code, said)
    assert ran.code in (1, 2)
