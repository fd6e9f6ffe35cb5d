"""The documents that clients get: whole answers and pieces of a stream."""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from minitron_engine.generation.slot import GenerationRequest

_REASONS = {"end": "stop", "stop": "stop", "grammar": "stop"}
DONE = b"data: [DONE]\n\n"


class Answer:
    """The frame of one answer, with several choices."""

    def __init__(self, model: str, *, is_chat: bool, counts: bool = False) -> None:
        self._is_chat = is_chat
        # OpenAI's chunks say null where their last one will count
        self._uncounted = {"usage": None} if counts else {}
        self._fixed = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, requests: Sequence[GenerationRequest], texts: Sequence[str]) -> dict[str, Any]:
        """The answer at once."""
        kind = "chat.completion" if self._is_chat else "text_completion"
        choices = [
            self._choice(number, self._content(text), reason_of(request))
            for number, (request, text) in enumerate(zip(requests, texts, strict=True))
        ]
        return self._fixed | {"object": kind, "choices": choices, "usage": usage(requests)}

    def piece(self, number: int, text: str, reason: str | None = None) -> bytes:
        """New text of a choice, as an event; with a reason the choice's last."""
        content = {"delta": {"content": text} if text else {}} if self._is_chat else {"text": text}
        return self._event([self._choice(number, content, reason)])

    def opening(self, number: int) -> bytes:
        """The event that a choice of a chat begins with."""
        content = {"delta": {"role": "assistant", "content": ""}}
        return self._event([self._choice(number, content, None)])

    def totals(self, requests: Sequence[GenerationRequest]) -> bytes:
        """The event that counts the tokens."""
        return self._event([], usage=usage(requests))

    def _content(self, text: str) -> dict[str, Any]:
        if self._is_chat:
            return {"message": {"role": "assistant", "content": text}}
        return {"text": text}

    def _choice(self, number: int, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": number, **content, "logprobs": None, "finish_reason": reason}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        document = self._fixed | {"object": kind, "choices": choices}
        return event(document | self._uncounted | more)


def event(document: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def reason_of(request: GenerationRequest) -> str:
    """Why an answer ended, in OpenAI's words."""
    return _REASONS.get(request.result.finish_reason or "", "length")


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
