"""/v1/responses, for text: a request becomes a chat, and its answer is written OpenAI's new way."""

import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from minitron_cli.server.answers import Choice, event, usage
from minitron_cli.server.requests import MOST_TOKENS, Message
from minitron_cli.server.tools import ToolCall
from minitron_cli.server.validation import Strict
from minitron_engine.generation.logprobs import TokenLogprob

# what has a place of its own in a chat, or changes nothing
_OWN = {"input", "instructions", "max_output_tokens", "text", "truncation"}


class TextFormat(Strict):
    """The form of a response's text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_: Any = Field(None, alias="schema")


class TextOptions(Strict):
    """How a response's text looks."""

    format: TextFormat | None = None


def _messages(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class ResponsesRequest(Strict):
    """The body of /v1/responses."""

    refused: ClassVar[tuple[str, ...]] = (
        *("background", "conversation", "previous_response_id", "prompt", "tools"),
        *("logprobs", "top_logprobs"),
    )

    input: Annotated[list[Message], BeforeValidator(_messages)] = Field(min_length=1)
    n: Literal[1] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    text: TextOptions | None = None
    truncation: Literal["disabled"] | None = None


def as_chat(body: dict[str, Any]) -> dict[str, Any]:
    """The chat that a body stands for. BadRequest: a field that is wrong."""
    request = ResponsesRequest.of(body)
    messages = [{"role": each.role, "content": each.content or ""} for each in request.input]
    if request.instructions:
        messages.insert(0, {"role": "system", "content": request.instructions})
    chat = {name: value for name, value in body.items() if name not in _OWN}
    chat |= {"messages": messages, "max_completion_tokens": request.max_output_tokens}
    form = request.text.format if request.text else None
    if form is not None and form.type != "text":
        chat["response_format"] = {"type": form.type, "json_schema": {"schema": form.schema_}}
    return chat


class ResponseAnswer:
    """The answers of /v1/responses: one message with one text."""

    def __init__(self, name: str, body: dict[str, Any]) -> None:
        self._message_id = f"msg_{secrets.token_hex(12)}"
        self._number = 0
        told_back = {
            key: body.get(key)
            for key in ("instructions", "max_output_tokens", "metadata", "temperature", "top_p")
        }
        self._fixed = told_back | {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": name,
            "error": None,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The finished response."""
        (choice,) = choices
        complete = choice.reason == "stop"
        status = "completed" if complete else "incomplete"
        return self._fixed | {
            "status": status,
            "incomplete_details": None if complete else {"reason": "max_output_tokens"},
            "output": [self._item(status, [_part(choice.request.result.text)])],
            "usage": _usage(choices),
        }

    def opening(self, choice: Choice) -> bytes:
        """The events before the first text."""
        begun = self._fixed | {
            "status": "in_progress",
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        return b"".join(
            (
                self._event("response.created", response=begun),
                self._event("response.in_progress", response=begun),
                self._event(
                    "response.output_item.added", output_index=0, item=self._item("in_progress", [])
                ),
                self._in_part("response.content_part.added", part=_part("")),
            )
        )

    def piece(
        self, choice: Choice, text: str, logprobs: Sequence[TokenLogprob], start: int
    ) -> bytes:
        """New text."""
        return self._in_part("response.output_text.delta", delta=text, logprobs=[])

    def closing(self, choice: Choice, calls: Sequence[ToolCall]) -> bytes:
        """The events after the last text."""
        text = choice.request.result.text
        (item,) = self.whole([choice])["output"]
        return b"".join(
            (
                self._in_part("response.output_text.done", text=text, logprobs=[]),
                self._in_part("response.content_part.done", part=_part(text)),
                self._event("response.output_item.done", output_index=0, item=item),
            )
        )

    def ending(self, choices: Sequence[Choice], counted: bool) -> bytes:
        """The finished response, which ends the stream."""
        found = self.whole(choices)
        return self._event(f"response.{found['status']}", response=found)

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        fixed = {"id": self._message_id, "type": "message", "role": "assistant"}
        return fixed | {"status": status, "content": content}

    def _in_part(self, kind: str, **more: Any) -> bytes:
        place = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **more)

    def _event(self, kind: str, **more: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **more}, kind)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(choices: Sequence[Choice]) -> dict[str, Any]:
    found = usage([choice.request for choice in choices])
    return {
        "input_tokens": found["prompt_tokens"],
        "input_tokens_details": found["prompt_tokens_details"],
        "output_tokens": found["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": found["total_tokens"],
    }
