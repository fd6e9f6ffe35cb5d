"""A client's request becomes prompts and settings of the engine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minitron_cli.server.errors import BadRequest
from minitron_cli.server.requests import (
    MOST_CHOICES,
    ChatFields,
    ChatRequest,
    CompletionRequest,
    GenerationFields,
)
from minitron_cli.server.tools import ToolParser, forced_schema, format_of
from minitron_core.errors import Usage
from minitron_core.quoting import quoted
from minitron_engine.generation.constraint import compile_schema
from minitron_engine.generation.generate import prompt_tokens
from minitron_engine.generation.sampling import random_seed, settings_for
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
    draft_max: the most tokens that are drafted at once.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    n_predict: int | None = None
    strict: bool = False
    draft_max: int = 8


PLAIN = ServerDefaults()


@dataclass(frozen=True)
class ParsedRequest:
    """A checked request: one answer for each prompt and each of its `settings`.

    ignored: parameters that nothing here knows. field: what the prompts came from. tools: finds the
    calls in an answer.
    """

    prompts: tuple[Tokens, ...]
    settings: tuple[GenerationSettings, ...]
    echoed: tuple[str, ...]
    stream: bool
    usage_in_stream: bool
    ignored: tuple[str, ...]
    field: str
    tools: ToolParser | None = None


def completion(
    body: dict[str, Any], model: Model, defaults: ServerDefaults = PLAIN
) -> ParsedRequest:
    """Parse a request to /v1/completions. BadRequest: a field that is wrong."""
    request = CompletionRequest.of(body)
    prompts = tuple(_tokens(model, prompt) for prompt in request.prompt)
    echoed = tuple(_text(model, prompt) if request.echo else "" for prompt in request.prompt)
    settings = _settings(request, model, defaults, request.logprobs, _COMPLETION_TOKENS)
    if request.echo and request.logprobs is not None:
        settings = tuple(replace(each, prompt_logprobs=True) for each in settings)
    return _parsed(request, prompts, settings, echoed, defaults, field="prompt")


def chat(
    body: dict[str, Any],
    model: Model,
    template: ChatTemplate,
    defaults: ServerDefaults = PLAIN,
    *,
    field: str = "messages",
) -> ParsedRequest:
    """Parse a request to /v1/chat/completions. BadRequest: a field that is wrong.

    field: what the client calls the conversation.
    """
    request = ChatRequest.of(body)
    values = dict(request.chat_template_kwargs or {})
    parser, schema = None, None
    if request.tools and request.tool_choice != "none":
        parser, schema = _tools(request, template)
        # as the client wrote them: templates show them to the model
        values["tools"] = body["tools"]
    elif request.tool_choice not in (None, "none", "auto"):
        raise BadRequest("tool_choice needs tools to choose from", "tool_choice")
    text = template.render([message.for_template() for message in request.messages], **values)
    if parser is not None and parser.begun:
        text += ("</think>" if text.rstrip().endswith("<think>") else "") + parser.begun
    tokens = chat_tokens(model, text)
    settings = _settings(request, model, defaults, request.wanted_logprobs, -1, schema)
    found = _parsed(request, (tokens,), settings, ("",), defaults, field=field)
    return replace(found, tools=parser)


def _parsed(
    request: GenerationFields,
    prompts: tuple[Tokens, ...],
    settings: tuple[GenerationSettings, ...],
    echoed: tuple[str, ...],
    defaults: ServerDefaults,
    *,
    field: str,
) -> ParsedRequest:
    if request.choices * len(prompts) > MOST_CHOICES:
        raise BadRequest(f"more than {MOST_CHOICES} answers in one request", "n")
    if defaults.strict and request.ignored:
        name = request.ignored[0]
        raise BadRequest(f"{quoted(name)} is not a parameter that this server knows", name)
    options = request.stream_options
    return ParsedRequest(
        prompts=prompts,
        settings=settings,
        echoed=echoed,
        stream=bool(request.stream),
        usage_in_stream=bool(options and options.include_usage),
        ignored=request.ignored,
        field=field,
    )


def _tools(request: ChatFields, template: ChatTemplate) -> tuple[ToolParser, Any]:
    """What finds the calls of the request's tools, and the schema of a call that is forced."""
    form = format_of(template.source)
    if form is None:
        raise BadRequest("the model's chat template takes no tools in a known format", "tools")
    if request.grammar or request.schema_to_follow is not None:
        message = "tools exclude a grammar or response_format, unless tool_choice is none"
        raise BadRequest(message, "tools")
    tools = {each.function.name: each.function.schema_of_arguments for each in request.tools or ()}
    choice = request.tool_choice or "auto"
    if choice == "auto":
        most = 1 if request.parallel_tool_calls is False else None
        return ToolParser(form, tools, most=most), None
    names = tuple(tools) if choice == "required" else (choice.removeprefix(":"),)
    if not tools.keys() >= set(names):
        raise BadRequest(f"tool_choice names {names[0]}, which is not among tools", "tool_choice")
    return ToolParser(form, tools, form.opening), forced_schema(form, tools, names)


def _settings(
    request: GenerationFields,
    model: Model,
    defaults: ServerDefaults,
    logprobs: int | None,
    n_predict: int,
    forced: Any = None,
) -> tuple[GenerationSettings, ...]:
    given = request.sampling() | _structure(request, model, forced)
    if request.logit_bias is not None:
        given["logit_bias"] = _biases(request.logit_bias, model.n_vocab)
    kept = dict(defaults.sampling)
    if given.keys() & {"grammar", "json_schema"}:
        kept = {name: kept[name] for name in kept.keys() - {"grammar", "json_schema"}}
    seed = _seed(kept.get("seed") if request.seed is None else request.seed)
    limit = _limit(request, defaults, n_predict)
    return tuple(
        GenerationSettings(
            settings_for(model, kept | given | {"seed": (seed + number) % (2**32 - 1)}),
            limit,
            tuple(request.stop or ()),
            draft_max=defaults.draft_max,
            logprobs=logprobs,
        )
        for number in range(request.choices)
    )


def _limit(request: GenerationFields, defaults: ServerDefaults, otherwise: int) -> int:
    limits = request.max_completion_tokens, request.max_tokens, defaults.n_predict, otherwise
    return next(limit for limit in limits if limit is not None)


def _seed(seed: int | None) -> int:
    """A seed of llama.cpp's 32 bits from any of a client's 64; -1 is random, as in llama-server."""
    return random_seed() if seed in (None, -1) else int(seed or 0) % 2**32


def _biases(given: Mapping[str, float], n_vocab: int) -> tuple[tuple[int, float], ...]:
    try:
        biases = tuple((int(token), float(bias)) for token, bias in given.items())
    except (ValueError, OverflowError):
        raise BadRequest("logit_bias must map tokens to numbers", "logit_bias") from None
    if not all(0 <= token < n_vocab and abs(bias) < 1e9 for token, bias in biases):
        raise BadRequest(f"logit_bias takes tokens below {n_vocab}", "logit_bias")
    return biases


def _structure(request: GenerationFields, model: Model, forced: Any) -> dict[str, str]:
    """The grammar or the JSON schema that an answer follows; neither where it is free.

    forced: the schema of a call that must be made.
    """
    grammar = request.grammar or ""
    schema = request.schema_to_follow if forced is None else forced
    text = "" if schema is None else json.dumps(schema)
    try:
        if text:
            compile_schema(text)
        if grammar:
            check_grammar(grammar, model.is_token)
    except Usage as error:
        parameter = "tools" if forced is not None else "response_format" if text else "grammar"
        raise BadRequest(str(error), parameter) from error
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
