"""The bodies that clients send, as pydantic models: OpenAI's fields and llama-server's.

The fields of sampling come from the engine's registry, under llama-server's names for them.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from minitron_cli.server.validation import Strict
from minitron_engine.generation.sampling import SAMPLING_OPTIONS

MOST_CHOICES = 64
MOST_LOGPROBS = 20  # OpenAI's limit of a chat
_MOST_STOPS = 64
MOST_TOKENS = 2**31 - 1


def _texts(value: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("must be a list of texts")
    return value


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > _MOST_STOPS
        or not all(isinstance(stop, str) for stop in stops)
    ):
        raise ValueError(f"must be a text or a list of up to {_MOST_STOPS} texts")
    return stops


def _content(value: Any) -> Any:
    """The text of a message; parts are joined by line breaks, as llama-server does."""
    if not isinstance(value, list):
        if value is None or isinstance(value, str):
            return value
        raise ValueError("must be a text or a list of parts")
    texts = [part.get("text") if isinstance(part, dict) else None for part in value]
    known = [text for text in texts if isinstance(text, str)]
    if len(known) < len(texts):
        raise ValueError("has a part that is not text")
    return "\n".join(known)


def is_token_list(value: Any) -> bool:
    """Whether a value is a list of token ids."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    )


def _prompts(value: Any) -> list[Any]:
    if isinstance(value, str) or is_token_list(value):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if all(is_token_list(item) for item in value):
            return value
    raise ValueError("must be a text, a list of tokens, or a list of either")


def _tool_choice(value: Any) -> Any:
    """none, auto, required, or `:` and the name of the function to call."""
    if value in (None, "none", "auto", "required"):
        return value
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise ValueError("must be none, auto, required or a function")
    return f":{name}"


Prompts = Annotated[list[Any], BeforeValidator(_prompts)]
Stops = Annotated[list[str] | None, BeforeValidator(lambda v: v if v is None else _stops(v))]
Content = Annotated[str | None, BeforeValidator(_content)]


class StreamOptions(Strict):
    """What a stream has beside its text."""

    include_usage: bool | None = None


class NamedSchema(Strict):
    """A JSON schema as OpenAI wraps it."""

    schema_: Any = Field(None, alias="schema")


class ResponseFormat(Strict):
    """The form of an answer; `schema` beside json_object is llama-server's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: Any = Field(None, alias="schema")

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        given = self.json_schema.schema_ if self.json_schema else None
        if self.type == "json_schema" and given is None:
            raise ValueError("needs a schema: json_schema is an object with one")
        return self


class GenerationFields(Strict):
    """What requests for text have in common."""

    refused: ClassVar[tuple[str, ...]] = ("suffix", "functions", "function_call", "audio")

    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES)
    # below 0 means no limit, as in llama-server
    max_tokens: int | None = Field(None, ge=-2, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=-2, le=MOST_TOKENS)
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1)
    stop: Stops = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = None
    grammar: str | None = None
    json_schema: Any = None
    response_format: ResponseFormat | None = None

    @field_validator("response_format", "stream_options", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == {} else value

    @field_validator("best_of")
    @classmethod
    def _as_many_as_n(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value not in (None, info.data.get("n") or 1):
            raise ValueError("is not supported, unless it is n")
        return value

    @property
    def choices(self) -> int:
        """Answers for each prompt."""
        return self.n or 1

    @property
    def schema_to_follow(self) -> Any:
        """The JSON schema of an answer, in every form that clients send; None for no schema."""
        form = self.response_format
        if form is None or form.type == "text":
            return self.json_schema
        if form.type == "json_object":
            return form.schema_ or self.json_schema or {"type": "object"}
        return form.json_schema.schema_ if form.json_schema else None

    def sampling(self) -> dict[str, Any]:
        """The settings of the engine's registry that the body has."""
        given = {row.name: getattr(self, row.request) for row in _SAMPLING}
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
            if value is not None
        }


class CompletionFields(GenerationFields):
    """The body of /v1/completions."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: Content = None
    tool_calls: list[Any] | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        # clients send none in a turn that only calls tools
        if self.content is None and self.role != "assistant":
            raise ValueError("needs a content that is a text")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it, with the fields that only some of them know."""
        role = "system" if self.role == "developer" else self.role
        more = {key: value for key, value in (self.model_extra or {}).items() if value is not None}
        if self.tool_calls:
            more["tool_calls"] = [_with_object(call) for call in self.tool_calls]
        return {**more, "role": role, "content": self.content or ""}


def _with_object(call: Any) -> Any:
    """A tool call whose arguments are an object, as templates want it; clients send its text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


class Function(Strict):
    """A function that a model may call."""

    name: str = Field(min_length=1)
    parameters: dict[str, Any] | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """The JSON schema of an object; without parameters of an empty one, as for OpenAI."""
        if not self.parameters:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}


class Tool(Strict):
    """A tool; functions are all that there is."""

    type: Literal["function"]
    function: Function


class ChatFields(GenerationFields):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: list[Tool] | None = None
    tool_choice: Annotated[str | None, BeforeValidator(_tool_choice)] = None
    parallel_tool_calls: bool | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _no_messages(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value and "messages" in value:
            raise ValueError("must not have messages")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _beside_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("needs logprobs to be true")
        return value

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likeliest tokens are wanted beside each one; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


# what the command line reads from a file, and what has more forms in a body, have fields above
_SAMPLING = tuple(
    row for row in SAMPLING_OPTIONS if not row.text and row.name not in ("logit_bias", "seed")
)


def _sampling_fields() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for row in _SAMPLING:
        if row.numeric:
            fields[row.request] = (row.type | None, Field(None, ge=row.low, le=row.high))
        elif row.type is bool:
            fields[row.request] = (bool | None, None)
        else:
            texts = Annotated[list[str] | None, BeforeValidator(lambda v: v and _texts(v))]
            fields[row.request] = (texts, None)
    return fields


CompletionRequest: type[CompletionFields] = create_model(
    "CompletionRequest", __base__=CompletionFields, **_sampling_fields()
)
ChatRequest: type[ChatFields] = create_model(
    "ChatRequest", __base__=ChatFields, **_sampling_fields()
)
