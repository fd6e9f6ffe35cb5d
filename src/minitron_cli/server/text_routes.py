"""The routes that generate text: completions, chats and responses, whole or as a stream."""

import asyncio
import json

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from minitron_cli.server import prepare
from minitron_cli.server.answers import Answer, ChatAnswer, CompletionAnswer, usage
from minitron_cli.server.errors import BadRequest
from minitron_cli.server.http import json_body, unless_gone
from minitron_cli.server.prepare import ParsedRequest
from minitron_cli.server.responses_api import ResponseAnswer, as_chat
from minitron_cli.server.service import Service
from minitron_cli.server.streams import Streams
from minitron_engine.isolation.chat_template import ChatTemplate

_LONGEST_HEADER = 1000
_NO_TEMPLATE = "the model has no chat template: use /v1/completions"


class TextRoutes:
    """The handlers, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def completions(self, request: Request) -> Response:
        """Continue texts."""
        body, service = await json_body(request), self._service
        # tokenizing a book, or checking a grammar, must not hold up the others
        parsed = await asyncio.to_thread(prepare.completion, body, service.model, service.defaults)
        counts = parsed.stream and parsed.usage_in_stream
        answer = CompletionAnswer(service.name, service.model, counts=counts)
        return await self._respond(request, parsed, answer)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body, service = await json_body(request), self._service
        parsed = await asyncio.to_thread(
            prepare.chat, body, service.model, self._template(), service.defaults
        )
        counts = parsed.stream and parsed.usage_in_stream
        answer = ChatAnswer(service.name, service.model, counts=counts)
        return await self._respond(request, parsed, answer)

    async def responses(self, request: Request) -> Response:
        """Answer an input, as /v1/responses does: a chat in another form."""
        body, service, template = await json_body(request), self._service, self._template()
        parsed = await asyncio.to_thread(
            lambda: prepare.chat(
                as_chat(body), service.model, template, service.defaults, field="input"
            )
        )
        return await self._respond(request, parsed, ResponseAnswer(service.name, body))

    def _template(self) -> ChatTemplate:
        if self._service.template is None:
            raise BadRequest(_NO_TEMPLATE)
        return self._service.template

    async def _respond(self, request: Request, parsed: ParsedRequest, answer: Answer) -> Response:
        service = self._service
        streams = Streams(service.worker, parsed, service.metrics)
        request.state.usage = lambda: usage([choice.request for choice in streams.choices])
        headers = _ignored(parsed.ignored)
        if parsed.stream:
            # what fails before the first word still sets the status
            first = await anext(streams.updates)
            counted = parsed.usage_in_stream
            events = streams.events(answer, first, counted)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)

        async def whole() -> Response:
            await streams.finish()
            return JSONResponse(answer.whole(streams.choices), headers=headers)

        return await unless_gone(request, whole())


def _ignored(names: tuple[str, ...]) -> dict[str, str]:
    """The header that tells a client which of its parameters have no effect."""
    # a name may have any character, a header may not
    told = ", ".join(json.dumps(name)[1:-1] for name in names)
    return {"X-Minitron-Ignored": told[:_LONGEST_HEADER]} if names else {}
