"""The documents of completions and chats: whole answers and the events of a stream."""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from minitron_cli.server.logprobs import chat_logprobs, completion_logprobs
from minitron_cli.server.tools import ToolCall, ToolParser
from minitron_engine.generation.logprobs import TokenLogprob
from minitron_engine.generation.slot import GenerationRequest
from minitron_engine.generation.steps import Timings
from minitron_engine.llama.model import Model

_REASONS = {"end": "stop", "stop": "stop", "grammar": "stop"}
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Choice:
    """One answer of a request. echoed: the prompt's text, where it is to be repeated."""

    number: int
    request: GenerationRequest
    echoed: str = ""
    tools: ToolParser | None = None

    @property
    def reason(self) -> str:
        """Why the answer ended, in OpenAI's words, but for calls of tools."""
        return _REASONS.get(self.request.result.finish_reason or "", "length")

    @property
    def has_logprobs(self) -> bool:
        """Whether the client asked for log-probabilities."""
        return self.request.settings.logprobs is not None


class Answer(Protocol):
    """How one API writes its answers."""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """All choices at once."""

    def opening(self, choice: Choice) -> bytes:
        """What a choice begins with; called when its first token is there."""

    def piece(
        self, choice: Choice, text: str, logprobs: Sequence[TokenLogprob], start: int
    ) -> bytes:
        """New text of a choice, with the log-probabilities of its tokens, and where it starts."""

    def closing(self, choice: Choice, calls: Sequence[ToolCall]) -> bytes:
        """The end of a choice."""

    def ending(self, choices: Sequence[Choice], counted: bool) -> bytes:
        """The end of the stream. counted: the client wants the numbers of tokens."""


class CompletionAnswer:
    """The answers of /v1/completions, and the frame of those of a chat."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, name: str, model: Model, *, counts: bool = False) -> None:
        """counts: the stream will end with the numbers of tokens."""
        self.model = model
        # OpenAI's chunks say null where their last one will count
        self._uncounted = {"usage": None} if counts else {}
        self._fixed = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": name,
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """All choices at once."""
        documents = [self._finished(choice) for choice in choices]
        requests = [choice.request for choice in choices]
        more = {"usage": usage(requests)} | timings(requests)
        return self._fixed | {"object": self.kind, "choices": documents} | more

    def opening(self, choice: Choice) -> bytes:
        """The prompt, where it is repeated."""
        if not choice.echoed:
            return b""
        found = completion_logprobs(self.model, choice.request, echo=True, answer=False)
        return self._chunk(choice, {"text": choice.echoed}, found if choice.has_logprobs else None)

    def piece(
        self, choice: Choice, text: str, logprobs: Sequence[TokenLogprob], start: int
    ) -> bytes:
        """New text of a choice."""
        found = completion_logprobs(self.model, choice.request, logprobs=logprobs, start=start)
        return self._chunk(choice, {"text": text}, found if logprobs else None)

    def closing(self, choice: Choice, calls: Sequence[ToolCall]) -> bytes:
        """Why a choice ended."""
        return self._chunk(choice, {"text": ""}, None, choice.reason)

    def ending(self, choices: Sequence[Choice], counted: bool) -> bytes:
        """The numbers of tokens, and the end."""
        requests = [choice.request for choice in choices]
        counts = self._event([], **timings(requests), usage=usage(requests)) if counted else b""
        return counts + DONE

    def _finished(self, choice: Choice) -> dict[str, Any]:
        text = choice.echoed + choice.request.result.text
        logprobs = None
        if choice.has_logprobs:
            echo = choice.request.settings.prompt_logprobs
            logprobs = completion_logprobs(self.model, choice.request, echo=echo)
        return _choice(choice, {"text": text}, logprobs, choice.reason)

    def _chunk(
        self, choice: Choice, content: dict[str, Any], logprobs: Any, reason: str | None = None
    ) -> bytes:
        return self._event([_choice(choice, content, logprobs, reason)])

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        document = self._fixed | {"object": self.chunk_kind, "choices": choices}
        return event(document | self._uncounted | more)


class ChatAnswer(CompletionAnswer):
    """The answers of /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, choice: Choice) -> bytes:
        """The role."""
        return self._chunk(choice, {"delta": {"role": "assistant", "content": ""}}, None)

    def piece(
        self, choice: Choice, text: str, logprobs: Sequence[TokenLogprob], start: int
    ) -> bytes:
        """New text of a choice."""
        found = chat_logprobs(self.model, logprobs) if logprobs else None
        return self._chunk(choice, {"delta": {"content": text}}, found)

    def closing(self, choice: Choice, calls: Sequence[ToolCall]) -> bytes:
        """The calls of a choice, each as a whole, and why it ended."""
        numbered = [{"index": number, **call} for number, call in enumerate(calls)]
        delta = {"delta": {"tool_calls": numbered}}
        told = self._chunk(choice, delta, None) if calls else b""
        reason = "tool_calls" if calls else choice.reason
        return told + self._chunk(choice, {"delta": {}}, None, reason)

    def _finished(self, choice: Choice) -> dict[str, Any]:
        result, calls = choice.request.result, list[ToolCall]()
        text: str | None = result.text
        if choice.tools is not None:
            text, calls = choice.tools.parse(result.text)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        logprobs = chat_logprobs(self.model, result.logprobs) if choice.has_logprobs else None
        reason = "tool_calls" if calls else choice.reason
        return _choice(choice, {"message": message}, logprobs, reason)


def _choice(
    choice: Choice, content: dict[str, Any], logprobs: Any, reason: str | None
) -> dict[str, Any]:
    return {"index": choice.number, **content, "logprobs": logprobs, "finish_reason": reason}


def event(document: dict[str, Any], name: str = "") -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def usage(requests: Sequence[GenerationRequest]) -> dict[str, Any]:
    """The tokens of all choices; a prompt that several have in common counts once."""
    prompts = {request.tokens.tobytes(): len(request.tokens) for request in requests}
    reused = sum(request.result.timings.reused_tokens for request in requests)
    prompt, answer = sum(prompts.values()), sum(len(request.result.tokens) for request in requests)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": min(prompt, reused)},
    }


def timings(requests: Sequence[GenerationRequest]) -> dict[str, Any]:
    """llama-server's timings of an answer that is the only one; nothing for several."""
    if len(requests) != 1:
        return {}
    found: Timings = requests[0].result.timings
    rates = {
        "cache_n": found.reused_tokens,
        "prompt_n": found.prompt_tokens - found.reused_tokens,
        "prompt_ms": 1000 * found.prompt_seconds,
        "prompt_per_second": found.prompt_tokens_per_second,
        "predicted_n": found.tokens,
        "predicted_ms": 1000 * found.generation_seconds,
        "predicted_per_second": found.tokens_per_second,
    }
    drafts = {"draft_n": found.drafted, "draft_n_accepted": found.accepted}
    return {"timings": rates | (drafts if found.drafted is not None else {})}
