"""What the server offers beside text: tokens, counters, embeddings, logprobs, responses."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import openai
import pytest

from helpers.server import serving
from helpers.support import with_template
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.tasks.likelihood import ScoreSettings
from minitron_quant.tasks.lm_eval_requests import loglikelihoods

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
DATA = Path(__file__).parents[1] / "data"
GREEDY: dict[str, Any] = {"model": "nano", "temperature": 0}


@pytest.fixture(scope="module")
def path(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(nano_llama, tmp_path_factory.mktemp("routes") / "nano.gguf", TEMPLATE)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with open_model(ModelSettings(path)) as opened:
        yield opened


@pytest.fixture(scope="module")
def url(path: Path) -> Iterator[str]:
    with serving(path, pooling="mean") as found:
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


def ask(url: str, body: Any = None) -> tuple[int, Any, Any]:
    """Status, document and headers of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer), answer.headers
    except HTTPError as error:
        return error.code, json.load(error), error.headers


def test_tokenize_takes_what_clients_of_llama_server_and_vllm_send(url: str, model: Model) -> None:
    plain = model.tokenize("The old house", add_special=False, parse_special=True).tolist()
    assert ask(f"{url}/tokenize", {"content": "The old house"})[1]["tokens"] == plain
    found = ask(f"{url}/tokenize", {"prompt": "The old house"})[1]
    assert found["tokens"] == [model.bos, *plain] and found["count"] == len(plain) + 1
    bare = {"prompt": "The old house", "add_special_tokens": False}
    assert ask(f"{url}/tokenize", bare)[1]["tokens"] == plain
    pieces = ask(f"{url}/tokenize", {"content": "aé☃", "with_pieces": True})[1]["tokens"]
    spelled = [
        p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces
    ]
    assert b"".join(spelled).decode().strip() == "aé☃"
    assert ask(f"{url}/detokenize", {"tokens": plain})[1]["content"].strip() == "The old house"
    assert ask(f"{url}/tokenize", {})[0] == 400
    status, answer, _ = ask(f"{url}/detokenize", {"tokens": [10**9]})
    assert status == 400 and answer["error"]["param"] == "tokens"


def test_metrics_count_what_was_served(url: str, client: Any) -> None:
    def metrics() -> dict[str, float]:
        with urlopen(f"{url}/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            lines = answer.read().decode().splitlines()
        typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
        rows = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        assert {name.partition("{")[0] for name, _ in rows} == typed
        return {name: float(value) for name, value in rows}

    before = metrics()
    client.completions.create(prompt="She went", max_tokens=5, **GREEDY)
    ask(f"{url}/nowhere")
    after = metrics()
    assert after["llamacpp:tokens_predicted_total"] - before["llamacpp:tokens_predicted_total"] == 5
    assert after["llamacpp:n_decode_total"] > before["llamacpp:n_decode_total"]
    assert after['minitron_requests_total{path="/v1/completions",status="200"}'] >= 1
    assert after['minitron_requests_total{path="other",status="404"}'] >= 1
    assert after["llamacpp:requests_processing"] == 0
    assert ask(f"{url}/v1/health")[1] == {"status": "ok"}


def test_embeddings_are_the_mean_of_what_the_model_computes(client: Any, model: Model) -> None:
    texts = ["The old house", "It was dark."]
    found = client.embeddings.create(model="nano", input=texts)
    floats = client.embeddings.create(model="nano", input=texts, encoding_format="float")
    assert found.usage.prompt_tokens == floats.usage.prompt_tokens > 6
    from minitron_engine.llama.binding import api

    for text, each, same in zip(texts, found.data, floats.data, strict=True):
        tokens = model.tokenize(text, add_special=True, parse_special=False)
        batch = Batch(64)
        batch.add(tokens, 0, 0, np.ones(len(tokens), dtype=np.bool_))
        # pooled by hand: the vectors of all tokens
        with open_context(model, ContextSettings(256, 64)) as context:
            api.llama_set_embeddings(context.handle, True)
            context.decode(batch)
            shape = (len(tokens), api.llama_model_n_embd_out(model.handle))
            rows = np.ctypeslib.as_array(api.llama_get_embeddings(context.handle), shape=shape)
            mean = rows.mean(axis=0)
        np.testing.assert_allclose(each.embedding, mean / np.linalg.norm(mean), atol=2e-3)
        np.testing.assert_allclose(each.embedding, same.embedding, atol=1e-6)


def test_embeddings_are_refused_where_a_model_has_none(path: Path) -> None:
    with serving(path) as url:
        status, answer, _ = ask(f"{url}/v1/embeddings", {"input": "x"})
    assert status == 501 and "--pooling" in answer["error"]["message"]


@pytest.mark.parametrize("body", [{"input": "word " * 400}, {"input": [10**9]}, {"input": ""}])
def test_embeddings_refuse_wrong_inputs(url: str, body: dict[str, Any]) -> None:
    status, answer, _ = ask(f"{url}/v1/embeddings", body)
    if body["input"] == "":  # BOS alone is a token
        assert status == 200
    else:
        assert status == 400 and answer["error"]["param"] == "input"


def test_completions_give_logprobs_of_prompt_and_answer(client: Any, model: Model) -> None:
    tokens = model.tokenize("The old house", add_special=True, parse_special=True).tolist()
    asked = {"prompt": tokens, "max_tokens": 3, "logprobs": 2, "echo": True, **GREEDY}
    (choice,) = client.completions.create(**asked).choices
    found = choice.logprobs
    assert len(found.tokens) == len(tokens) + 3
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    assert all(value < 0 for value in found.token_logprobs[1:])
    # the greedy tokens are the likeliest
    for value, top in list(zip(found.token_logprobs, found.top_logprobs, strict=True))[-3:]:
        assert value == max(top.values()) and len(top) == 2
    for token, offset in list(zip(found.tokens, found.text_offset, strict=True))[2:]:
        assert choice.text[offset : offset + len(token)] == token
    chunks = list(client.completions.create(stream=True, **asked))
    streamed = [chunk.choices[0] for chunk in chunks if chunk.choices[0].logprobs]
    assert [t for each in streamed for t in each.logprobs.tokens] == found.tokens
    assert [o for each in streamed for o in each.logprobs.text_offset] == found.text_offset
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text


def test_completions_give_lm_evals_numbers(url: str, model: Model) -> None:
    """What lm-eval 0.4.13's local-completions sent for a few texts, read as it reads answers."""
    recorded = json.loads((DATA / "lm_eval_local_completions.json").read_text())
    found, pairs = [], []
    for request in recorded:
        answer = ask(f"{url}/v1/completions", request["body"])[1]
        for prompt, start, choice in zip(
            request["body"]["prompt"], request["context"], answer["choices"], strict=True
        ):
            values = choice["logprobs"]["token_logprobs"][start:-1]
            tops = choice["logprobs"]["top_logprobs"][start:-1]
            likeliest = [max(top.values()) for top in tops]
            found.append((sum(values), values == likeliest))
            pairs.append((prompt[:start], prompt[start:]))
    # the adapter in this process, beside which nothing else is in a batch
    expected = loglikelihoods(model, pairs, 512, ScoreSettings(threads=1), lambda _done: None)
    assert len(found) == len(expected) == 7
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert any(greedy for _, greedy in found)
    for (log_p, _), (wanted, _), (_, scored) in zip(found, expected, pairs, strict=True):
        assert log_p == pytest.approx(wanted, abs=0.02 * len(scored))


def test_chats_give_logprobs(client: Any) -> None:
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, **GREEDY}
    (choice,) = client.chat.completions.create(logprobs=True, top_logprobs=3, **asked).choices
    content = choice.logprobs.content
    assert len(content) == 4 and all(len(each.top_logprobs) == 3 for each in content)
    assert b"".join(bytes(each.bytes) for each in content).decode() == choice.message.content
    assert all(each.logprob == each.top_logprobs[0].logprob for each in content)
    stream = client.chat.completions.create(logprobs=True, stream=True, **asked)
    told = [
        c
        for chunk in stream
        if chunk.choices[0].logprobs
        for c in chunk.choices[0].logprobs.content
    ]
    assert [each.token for each in told] == [each.token for each in content]


def test_responses_answer_as_chats_do(client: Any) -> None:
    asked = {"instructions": "Be brief.", "max_output_tokens": 8, **GREEDY}
    answer = client.responses.create(input="Who are you?", **asked)
    chat = client.chat.completions.create(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who are you?"},
        ],
        max_tokens=8,
        **GREEDY,
    )
    assert answer.output_text == chat.choices[0].message.content
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 8
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "Who are you?"}]}]
    same = client.responses.create(input=parts, **asked)
    assert same.output_text == answer.output_text


def test_responses_stream_every_event(client: Any) -> None:
    events = list(client.responses.create(input="Hi", max_output_tokens=5, stream=True, **GREEDY))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    done = next(event for event in events if event.type == "response.output_text.done")
    assert text and done.text == text == events[-1].response.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    # one that ends by itself, as OpenAI's own reader of streams expects it
    with client.responses.stream(
        input="Hi", extra_body={"json_schema": {"const": "yes"}}, **GREEDY
    ) as stream:
        assert json.loads(stream.get_final_response().output_text) == "yes"


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"n": 2}, "n"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"input": "word " * 400}, "input"),
    ],
)
def test_responses_refuse_what_they_do_not_do(
    url: str, fields: dict[str, Any], parameter: str
) -> None:
    status, answer, _ = ask(f"{url}/v1/responses", {"input": "Hi", **fields})
    assert status == 400 and answer["error"]["param"] == parameter


def test_unknown_parameters_are_told_or_refused(url: str, path: Path) -> None:
    body = {"prompt": "It", "max_tokens": 1, "foo": 1, "bar": None, "user": "me", "b\nä": []}
    status, _, headers = ask(f"{url}/v1/completions", body)
    assert status == 200 and headers["X-Minitron-Ignored"] == r"foo, b\n\u00e4"
    status, _, headers = ask(f"{url}/v1/completions", {"prompt": "It", "max_tokens": 1})
    assert "X-Minitron-Ignored" not in headers
    from minitron_cli.server.prepare import ServerDefaults

    with serving(path, defaults=ServerDefaults(strict=True)) as strict:
        status, answer, _ = ask(f"{strict}/v1/completions", body)
        assert status == 400 and answer["error"]["param"] == "foo"
        del body["foo"], body["b\nä"]
        assert ask(f"{strict}/v1/completions", body)[0] == 200


def test_embedding_in_base64_is_little_endian_floats(url: str) -> None:
    body = {"input": "x", "encoding_format": "base64"}
    text = ask(f"{url}/v1/embeddings", body)[1]["data"][0]["embedding"]
    vector = np.frombuffer(base64.b64decode(text), "<f4")
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
