"""A client's request becomes prompts and settings of the engine."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitron_cli.server.errors import BadRequest
from minitron_cli.server.requests import (
    MOST_CHOICES,
    ChatRequest,
    CompletionRequest,
    GenerationFields,
)
from minitron_core.errors import Usage
from minitron_engine.generation.constraint import compile_schema
from minitron_engine.generation.generate import prompt_tokens
from minitron_engine.generation.sampling import settings_for
from minitron_engine.generation.steps import GenerationSettings
from minitron_engine.isolation.chat_template import ChatTemplate, chat_tokens
from minitron_engine.isolation.grammar import check_grammar
from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens

_COMPLETION_TOKENS = 16  # OpenAI's default for completions


@dataclass(frozen=True)
class ServerDefaults:
    """What requests that leave it out get; sampling: fields of SamplingSettings by name.

    n_predict: tokens of an answer, None for OpenAI's defaults. strict: refuse unknown parameters.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    n_predict: int | None = None
    strict: bool = False


PLAIN = ServerDefaults()


@dataclass(frozen=True)
class ParsedRequest:
    """A checked request: one answer for each prompt and each of its `settings`.

    ignored: parameters that nothing here knows.
    """

    prompts: tuple[Tokens, ...]
    settings: tuple[GenerationSettings, ...]
    echoed: tuple[str, ...]
    stream: bool
    usage_in_stream: bool
    is_chat: bool
    ignored: tuple[str, ...]


def completion(
    body: dict[str, Any], model: Model, defaults: ServerDefaults = PLAIN
) -> ParsedRequest:
    """Parse a request to /v1/completions. BadRequest: a field that is wrong."""
    request = CompletionRequest.of(body)
    prompts = tuple(_tokens(model, prompt) for prompt in request.prompt)
    echoed = tuple(_text(model, prompt) if request.echo else "" for prompt in request.prompt)
    return _parsed(request, model, prompts, echoed, defaults, is_chat=False)


def chat(
    body: dict[str, Any], model: Model, template: ChatTemplate, defaults: ServerDefaults = PLAIN
) -> ParsedRequest:
    """Parse a request to /v1/chat/completions. BadRequest: a field that is wrong."""
    request = ChatRequest.of(body)
    messages = [message.for_template() for message in request.messages]
    text = template.render(messages, **(request.chat_template_kwargs or {}))
    prompts = (chat_tokens(model, text),)
    return _parsed(request, model, prompts, ("",), defaults, is_chat=True)


def _parsed(
    request: GenerationFields,
    model: Model,
    prompts: tuple[Tokens, ...],
    echoed: tuple[str, ...],
    defaults: ServerDefaults,
    *,
    is_chat: bool,
) -> ParsedRequest:
    if request.choices * len(prompts) > MOST_CHOICES:
        raise BadRequest(f"more than {MOST_CHOICES} answers in one request", "n")
    options = request.stream_options
    return ParsedRequest(
        prompts=prompts,
        settings=_settings(request, model, defaults, is_chat=is_chat),
        echoed=echoed,
        stream=bool(request.stream),
        usage_in_stream=bool(options and options.include_usage),
        is_chat=is_chat,
        ignored=request.ignored,
    )


def _settings(
    request: GenerationFields, model: Model, defaults: ServerDefaults, *, is_chat: bool
) -> tuple[GenerationSettings, ...]:
    given = request.sampling() | _structure(request, model)
    if request.logit_bias is not None:
        given["logit_bias"] = _biases(request.logit_bias, model.n_vocab)
    kept = dict(defaults.sampling)
    if given.keys() & {"grammar", "json_schema"}:
        kept = {name: kept[name] for name in kept.keys() - {"grammar", "json_schema"}}
    seed = _seed(kept.get("seed") if request.seed is None else request.seed)
    n_predict = _limit(request, defaults, -1 if is_chat else _COMPLETION_TOKENS)
    return tuple(
        GenerationSettings(
            settings_for(model, kept | given | {"seed": (seed + number) % (2**32 - 1)}),
            n_predict,
            tuple(request.stop or ()),
        )
        for number in range(request.choices)
    )


def _limit(request: GenerationFields, defaults: ServerDefaults, otherwise: int) -> int:
    limits = request.max_completion_tokens, request.max_tokens, defaults.n_predict, otherwise
    return next(limit for limit in limits if limit is not None)


def _seed(seed: int | None) -> int:
    """A seed of llama.cpp's 32 bits from any of a client's 64; -1 is random, as in llama-server."""
    return secrets.randbelow(2**32 - 1) if seed in (None, -1) else int(seed or 0) % 2**32


def _biases(given: Mapping[str, float], n_vocab: int) -> tuple[tuple[int, float], ...]:
    try:
        biases = tuple((int(token), float(bias)) for token, bias in given.items())
    except (ValueError, OverflowError):
        raise BadRequest("logit_bias must map tokens to numbers", "logit_bias") from None
    if not all(0 <= token < n_vocab and abs(bias) < 1e9 for token, bias in biases):
        raise BadRequest(f"logit_bias takes tokens below {n_vocab}", "logit_bias")
    return biases


def _structure(request: GenerationFields, model: Model) -> dict[str, str]:
    """The grammar or the JSON schema that an answer follows; neither where it is free."""
    grammar, schema = request.grammar or "", request.schema_to_follow
    text = "" if schema is None else json.dumps(schema)
    try:
        if text:
            compile_schema(text)
        if grammar:
            check_grammar(grammar, model.is_token)
    except Usage as error:
        raise BadRequest(str(error), "response_format" if text else "grammar") from error
    return {"grammar": grammar, "json_schema": text} if grammar or text else {}


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
