"""A client's JSON body, checked, becomes prompts and settings of the engine."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from minitron_core.errors import Usage
from minitron_engine.generation.constraint import compile_schema
from minitron_engine.generation.generate import prompt_tokens
from minitron_engine.generation.sampling import SAMPLING_OPTIONS, random_seed, settings_for
from minitron_engine.generation.steps import GenerationSettings
from minitron_engine.isolation.chat_template import ChatTemplate, Message, chat_tokens
from minitron_engine.isolation.grammar import check_grammar
from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens

MOST_CHOICES = 64
_MOST_STOPS = 64
_COMPLETION_TOKENS = 16  # OpenAI's default for completions
# these would change the answer and are not implemented: refused rather than ignored
_NOT_SUPPORTED = ("logprobs", "top_logprobs", "suffix", "tools", "functions", "audio")
_ROLES = {"developer": "system"} | {
    role: role for role in ("system", "user", "assistant", "tool", "function")
}


class BadRequest(Usage):
    """A request that cannot be answered: the field that is wrong, and OpenAI's code for why."""

    def __init__(self, message: str, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.parameter, self.code = parameter, code


@dataclass(frozen=True)
class ParsedRequest:
    """A checked request: one answer for each prompt and each of its `settings`."""

    prompts: tuple[Tokens, ...]
    settings: tuple[GenerationSettings, ...]
    echoed: tuple[str, ...]
    stream: bool
    usage_in_stream: bool
    is_chat: bool


def parse(body: bytes) -> dict[str, Any]:
    """The body as a JSON object; BadRequest otherwise."""
    try:
        found = json.loads(body)
        # JSON can name half a surrogate pair, which is not text
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object")
    return found


def completion(body: dict[str, Any], model: Model) -> ParsedRequest:
    """Parse a request to /v1/completions. BadRequest: a field that is wrong."""
    given = _prompts(body.get("prompt"))
    prompts = tuple(_tokens(model, prompt) for prompt in given)
    echo = _flag(body, "echo")
    echoed = tuple(_text(model, prompt) if echo else "" for prompt in given)
    return _parsed(body, model, prompts, echoed, is_chat=False)


def chat(body: dict[str, Any], model: Model, template: ChatTemplate) -> ParsedRequest:
    """Parse a request to /v1/chat/completions. BadRequest: a field that is wrong."""
    messages = _messages(body.get("messages"))
    more = body.get("chat_template_kwargs") or {}
    if not isinstance(more, dict) or "messages" in more:
        raise BadRequest("chat_template_kwargs must be an object", "chat_template_kwargs")
    tokens = chat_tokens(model, template.render(messages, **more))
    return _parsed(body, model, (tokens,), ("",), is_chat=True)


def _parsed(
    body: dict[str, Any],
    model: Model,
    prompts: tuple[Tokens, ...],
    echoed: tuple[str, ...],
    *,
    is_chat: bool,
) -> ParsedRequest:
    for name in _NOT_SUPPORTED:
        if body.get(name):
            raise BadRequest(f"{name} is not supported", name)
    count = int(_number(body, "n", int, 1, MOST_CHOICES) or 1)
    if _number(body, "best_of", int, 1, MOST_CHOICES) not in (None, count):
        raise BadRequest("best_of is not supported", "best_of")
    if count * len(prompts) > MOST_CHOICES:
        raise BadRequest(f"more than {MOST_CHOICES} answers in one request", "n")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequest("stream_options must be an object", "stream_options")
    return ParsedRequest(
        prompts=prompts,
        settings=_settings(body, model, count, is_chat=is_chat),
        echoed=echoed,
        stream=_flag(body, "stream"),
        usage_in_stream=_flag(options, "include_usage"),
        is_chat=is_chat,
    )


def _settings(
    body: dict[str, Any], model: Model, count: int, *, is_chat: bool
) -> tuple[GenerationSettings, ...]:
    given = _sampling(body)
    given["logit_bias"] = _biases(body.get("logit_bias"), model.n_vocab)
    given |= _structure(body, model)
    given.pop("seed", None)
    seed = _seed(body)
    limit = None
    for name in ("max_completion_tokens", "max_tokens"):
        # below 0 is no limit, as in llama-server
        found = _number(body, name, int, -2, 2**31 - 1)
        limit = found if limit is None else limit
    n_predict = int(limit) if limit is not None else -1 if is_chat else _COMPLETION_TOKENS
    stop = _stops(body.get("stop"))
    return tuple(
        GenerationSettings(
            settings_for(model, given | {"seed": (seed + number) % (2**32 - 1)}), n_predict, stop
        )
        for number in range(count)
    )


def _seed(body: dict[str, Any]) -> int:
    """A seed of llama.cpp's 32 bits from any of a client's 64; -1 is random, as in llama-server."""
    seed = _number(body, "seed", int, -(2**63), 2**64 - 1)
    return random_seed() if seed in (None, -1) else int(seed or 0) % 2**32


def _sampling(body: dict[str, Any]) -> dict[str, Any]:
    """The settings of the registry that a body has under llama-server's names for them."""
    given: dict[str, Any] = {}
    for row in SAMPLING_OPTIONS:
        if body.get(row.request) is None or row.text or row.name in ("logit_bias", "seed"):
            continue
        if row.numeric:
            given[row.name] = _number(body, row.request, row.type, row.low, row.high)
        elif row.type is bool:
            given[row.name] = _flag(body, row.request)
        else:
            given[row.name] = _texts(body, row.request)
    return given


def _texts(body: dict[str, Any], name: str) -> tuple[str, ...]:
    value = body[name]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadRequest(f"{name} must be a list of texts", name)
    return tuple(value)


def _number(
    body: dict[str, Any], name: str, kind: type, low: float, high: float
) -> int | float | None:
    value = body.get(name)
    if value is None:
        return None
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or not low <= value <= high:
        what = "an integer" if kind is int else "a number"
        raise BadRequest(f"{name} must be {what} from {low:g} to {high:g}", name)
    return cast("int | float", kind(value))


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false", name)
    return bool(value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if (
        not isinstance(stops, list)
        or len(stops) > _MOST_STOPS
        or not all(isinstance(stop, str) for stop in stops)
    ):
        raise BadRequest("stop must be a text or a list of texts", "stop")
    return tuple(stops)


def _biases(value: Any, n_vocab: int) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    try:
        biases = tuple((int(token), float(bias)) for token, bias in value.items())
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise BadRequest("logit_bias must map tokens to numbers", "logit_bias") from None
    if not all(0 <= token < n_vocab and abs(bias) < 1e9 for token, bias in biases):
        raise BadRequest(f"logit_bias takes tokens below {n_vocab}", "logit_bias")
    return biases


def _structure(body: dict[str, Any], model: Model) -> dict[str, str]:
    """The grammar or the JSON schema that an answer follows, in every form that clients send."""
    grammar, schema = body.get("grammar") or "", body.get("json_schema")
    form = body.get("response_format") or {"type": "text"}
    if not isinstance(form, dict) or not isinstance(grammar, str):
        raise BadRequest("response_format must be an object, and grammar a text", "response_format")
    match form.get("type"):
        case "json_object":
            schema = form.get("schema") or schema or {"type": "object"}
        case "json_schema":
            described = form.get("json_schema")
            schema = described.get("schema") if isinstance(described, dict) else None
            if schema is None:
                raise BadRequest("json_schema needs a schema", "response_format")
        case "text":
            pass
        case other:
            raise BadRequest(f"{other!r} is not a type of response_format", "response_format")
    text = "" if schema is None else json.dumps(schema)
    try:
        if text:
            compile_schema(text)
        if grammar:
            check_grammar(grammar, model.is_token)
    except Usage as error:
        raise BadRequest(str(error), "response_format" if text else "grammar") from error
    return {"grammar": grammar, "json_schema": text}


def _prompts(value: Any) -> Sequence[str | list[int]]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if _is_tokens(value):
            return [value]
        if all(_is_tokens(item) for item in value):
            return value
    raise BadRequest("prompt must be a text, a list of tokens, or a list of either", "prompt")


def _is_tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    )


def _tokens(model: Model, prompt: str | list[int]) -> Tokens:
    if isinstance(prompt, str):
        return prompt_tokens(model, prompt)
    if not all(0 <= token < model.n_vocab for token in prompt):
        raise BadRequest(f"prompt has a token that is not below {model.n_vocab}", "prompt")
    return np.array(prompt, dtype=np.int32)


def _text(model: Model, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return b"".join(model.piece(token) for token in prompt).decode(errors="replace")


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise BadRequest("messages must be a list with at least one message", "messages")
    return [_message(number, message) for number, message in enumerate(value)]


def _message(number: int, message: Any) -> Message:
    where = f"messages[{number}]"
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise BadRequest(f"{where} needs a role of {', '.join(_ROLES)}", where)
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        known = [text for text in texts if isinstance(text, str)]
        if len(known) < len(texts):
            raise BadRequest(f"{where} has a part that is not text", where)
        content = "\n".join(known)
    if content is None and message["role"] == "assistant":
        content = ""  # as clients send a turn that only calls tools
    if not isinstance(content, str):
        raise BadRequest(f"{where} needs a content that is a text", where)
    called = message.get("tool_calls")
    if not isinstance(called, list | None):
        raise BadRequest(f"{where} has tool_calls that are not a list", where)
    told: Message = {"role": _ROLES[message["role"]], "content": content}
    return told | ({"tool_calls": called} if called else {})
