"""Tokens of texts and texts of tokens, as llama-server and vLLM give them."""

import asyncio
from typing import Self

from pydantic import model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from minitron_cli.server.errors import BadRequest
from minitron_cli.server.http import json_body
from minitron_cli.server.service import Service
from minitron_cli.server.validation import Strict


class TokenizeRequest(Strict):
    """The body of /tokenize: llama-server's `content`, or vLLM's `prompt`, which has BOS."""

    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if (self.content is None) == (self.prompt is None):
            raise ValueError("content or prompt is required, and not both")
        return self

    @property
    def text(self) -> str:
        """What is to be tokenized."""
        return self.content if self.content is not None else self.prompt or ""

    @property
    def adds_special(self) -> bool:
        """Whether BOS goes before it."""
        asked = self.add_special if self.add_special_tokens is None else self.add_special_tokens
        return self.content is None if asked is None else asked


class DetokenizeRequest(Strict):
    """The body of /detokenize."""

    tokens: list[int]


class TokenRoutes:
    """The handlers, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a text, as llama-server and vLLM give them."""
        asked = TokenizeRequest.of(await json_body(request))
        return await asyncio.to_thread(self._tokens, asked)

    def _tokens(self, asked: TokenizeRequest) -> Response:
        model = self._service.model
        ids = model.tokenize(
            asked.text,
            add_special=asked.adds_special,
            parse_special=asked.parse_special is not False,
        ).tolist()
        if asked.with_pieces:
            pieces = [model.piece(token, special=True) for token in ids]
            described = [{"id": i, "piece": _piece(p)} for i, p in zip(ids, pieces, strict=True)]
            return JSONResponse({"tokens": described, "count": len(ids)})
        n_ctx = self._service.worker.n_ctx
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": n_ctx})

    async def detokenize(self, request: Request) -> Response:
        """The text of tokens, under llama-server's name and vLLM's."""
        asked, model = DetokenizeRequest.of(await json_body(request)), self._service.model
        if not all(0 <= token < model.n_vocab for token in asked.tokens):
            raise BadRequest(f"tokens has one that is not below {model.n_vocab}", "tokens")

        def text_of() -> str:
            pieces = (model.piece(token, special=True) for token in asked.tokens)
            return b"".join(pieces).decode(errors="replace")

        text = await asyncio.to_thread(text_of)
        return JSONResponse({"content": text, "prompt": text})

    async def tokenizer_info(self, _request: Request) -> Response:
        """The special tokens and the template, as vLLM gives them."""
        model, template = self._service.model, self._service.template
        return JSONResponse(
            {
                "bos_token": model.special(model.bos) or None,
                "eos_token": model.special(model.eos) or None,
                "chat_template": template.source if template else None,
            }
        )


def _piece(data: bytes) -> str | list[int]:
    """A token's text, or its bytes where they are not whole characters, as llama-server does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
