"""The routes: authentication, limits, and answers whole or as a stream of events."""

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from minitron_cli.server import prepare
from minitron_cli.server.errors import BadRequest, failure, problem
from minitron_cli.server.prepare import ParsedRequest
from minitron_cli.server.responses import DONE, Answer, event, reason_of
from minitron_cli.server.validation import parse
from minitron_cli.server.worker import Subscription, Update, Worker
from minitron_core.errors import MinitronError
from minitron_engine.generation.slot import GenerationRequest
from minitron_engine.isolation.chat_template import ChatTemplate
from minitron_engine.llama.model import Model

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MOST_BYTES = 32 << 20
_SLOWEST_BODY = 60.0  # seconds
_NO_TEMPLATE = "the model has no chat template: use /v1/completions"

# pages that this machine serves itself, on any port
_OWN_PAGES = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Service:
    """What the routes serve. template: None where the model has none. api_key: empty for none.

    origins: web pages beside those of this machine that may ask; * for all.
    """

    name: str
    model: Model
    template: ChatTemplate | None
    worker: Worker
    api_key: str
    origins: tuple[str, ...] = ()


def make_app(service: Service, host: str) -> Starlette:
    """The application. Bound to loopback it answers only to loopback's names, so that no web page
    can reach it through a name of its own.
    """
    routes = _Routes(service)
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    pages = Middleware(
        CORSMiddleware,
        allow_origins=service.origins,
        allow_origin_regex=_OWN_PAGES,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
    )
    return Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/v1/models", routes.guarded(routes.models)),
            Route("/v1/models/{name:path}", routes.guarded(routes.model)),
            Route("/v1/completions", routes.guarded(routes.completions), methods=["POST"]),
            Route("/v1/chat/completions", routes.guarded(routes.chat), methods=["POST"]),
        ],
        middleware=[trusted, pages] if host in LOOPBACK else [pages],
        exception_handlers={404: _not_found, 405: _not_found},
    )


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    message = f"there is no {request.method} {request.url.path}"
    return JSONResponse(problem(message, "invalid_request_error"), status)


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._started = int(time.time())

    def guarded(self, handler: Handler) -> Handler:
        """A handler that checks the key and turns errors into answers."""

        async def handle(request: Request) -> Response:
            key = f"Bearer {self._service.api_key}".encode()
            given = request.headers.get("Authorization", "").encode()
            if self._service.api_key and not hmac.compare_digest(key, given):
                message = "the API key is missing or wrong"
                found = problem(message, "invalid_request_error", code="invalid_api_key")
                return JSONResponse(found, 401, {"WWW-Authenticate": "Bearer"})
            try:
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:
                document, status = failure(error)
                return JSONResponse(document, status)

        return handle

    async def health(self, _request: Request) -> Response:
        """Ready: while the model loads, requests wait for their answer."""
        return JSONResponse({"status": "ok"})

    async def models(self, _request: Request) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def model(self, request: Request) -> Response:
        """The one model, by its name."""
        name = request.path_params["name"]
        if name != self._service.name:
            found = problem(f"there is no model {name}", "invalid_request_error", "model")
            return JSONResponse(found, 404)
        return JSONResponse(self._description())

    async def completions(self, request: Request) -> Response:
        """Continue texts."""
        body = parse(await _body(request))
        # tokenizing a book, or checking a grammar, must not hold up the others
        parsed = await asyncio.to_thread(prepare.completion, body, self._service.model)
        return await self._respond(request, parsed)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body = parse(await _body(request))
        template = self._service.template
        if template is None:
            raise BadRequest(_NO_TEMPLATE)
        parsed = await asyncio.to_thread(prepare.chat, body, self._service.model, template)
        return await self._respond(request, parsed)

    def _description(self) -> dict[str, Any]:
        return {
            "id": self._service.name,
            "object": "model",
            "created": self._started,
            "owned_by": "minitron",
            "meta": {
                "n_ctx": self._service.worker.n_ctx,
                "n_params": self._service.model.n_params,
                "size": self._service.model.size,
            },
        }

    async def _respond(self, request: Request, parsed: ParsedRequest) -> Response:
        streams = _Streams(self._service.worker, parsed)
        counts = parsed.stream and parsed.usage_in_stream
        answer = Answer(self._service.name, is_chat=parsed.is_chat, counts=counts)
        if parsed.stream:
            # what fails before the first word still sets the status
            first = await anext(streams.updates)
            return StreamingResponse(
                _events(streams, answer, first), media_type="text/event-stream"
            )
        return await _unless_gone(request, streams.whole(answer))


class _Streams:
    """The answers of a client's request, and their text as it comes."""

    def __init__(self, worker: Worker, parsed: ParsedRequest) -> None:
        self._worker, self.parsed = worker, parsed
        self._queue: asyncio.Queue[Update] = asyncio.Queue()
        self.requests = [
            GenerationRequest(tokens, one) for tokens in parsed.prompts for one in parsed.settings
        ]
        self.echoed = [text for text in parsed.echoed for _ in parsed.settings]
        for each in self.requests:
            if len(each.tokens) >= worker.n_ctx:
                count = len(each.tokens)
                message = f"the prompt has {count} tokens, the context takes {worker.n_ctx}"
                field = "messages" if parsed.is_chat else "prompt"
                raise BadRequest(message, field, "context_length_exceeded")
        self.updates = self._updates()

    async def _updates(self) -> AsyncGenerator[Update]:
        """Updates of all subscriptions; raises their errors; releases them at its end."""
        subscriptions = []
        try:
            for number, each in enumerate(self.requests):
                subscription = Subscription(each, number, self._queue)
                self._worker.submit(subscription)
                subscriptions.append(subscription)
            left = len(subscriptions)
            while left:
                update = await self._queue.get()
                error = self.requests[update[0]].error
                if error is not None:
                    raise error
                left -= update[2]
                yield update
        finally:
            for subscription in subscriptions:
                self._worker.release(subscription)

    async def whole(self, answer: Answer) -> Response:
        """All texts at once."""
        texts = list(self.echoed)
        async for number, text, _ in self.updates:
            texts[number] += text
        return JSONResponse(answer.whole(self.requests, texts))


async def _events(streams: _Streams, answer: Answer, first: Update) -> AsyncIterator[bytes]:
    for number, text in enumerate(streams.echoed):
        if streams.parsed.is_chat:
            yield answer.opening(number)
        elif text:
            yield answer.piece(number, text)
    try:
        number, text, last = first
        while True:
            if text:
                yield answer.piece(number, text)
            if last:
                yield answer.piece(number, "", reason_of(streams.requests[number]))
            following = await anext(streams.updates, None)
            if following is None:
                break
            number, text, last = following
        if streams.parsed.usage_in_stream:
            yield answer.totals(streams.requests)
    except MinitronError as error:
        yield event(failure(error)[0])
    finally:
        await streams.updates.aclose()
    yield DONE


async def _body(request: Request) -> bytes:
    # a web page may send anything else to loopback without asking first
    if not request.headers.get("Content-Type", "").startswith("application/json"):
        raise BadRequest("the Content-Type must be application/json")
    parts, size = [], 0
    try:
        async with asyncio.timeout(_SLOWEST_BODY):
            async for part in request.stream():
                size += len(part)
                if size > _MOST_BYTES:
                    raise BadRequest(f"the body is longer than {_MOST_BYTES} bytes")
                parts.append(part)
    except TimeoutError:
        raise BadRequest("timed out while reading the request body") from None
    return b"".join(parts)


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """The answer, cancelled when the client disconnects first."""
    working = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else Response(status_code=499)
    finally:
        for task in (working, leaving):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
