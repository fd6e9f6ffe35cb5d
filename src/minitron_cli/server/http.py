"""What all routes have in common: the key, bodies, errors, clients that leave."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from minitron_cli.server.errors import BadRequest, failure, problem
from minitron_cli.server.validation import parse

_MOST_BYTES = 32 << 20
_SLOWEST_BODY = 60.0  # seconds

Handler = Callable[[Request], Awaitable[Response]]


def guarded(handler: Handler, api_key: str) -> Handler:
    """A handler that checks the key, if there is one, and turns errors into answers."""
    key = f"Bearer {api_key}".encode()

    async def handle(request: Request) -> Response:
        given = request.headers.get("Authorization", "").encode()
        if api_key and not hmac.compare_digest(key, given):
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


async def not_found(request: Request, error: Exception) -> Response:
    """The answer where there is no such route."""
    status = getattr(error, "status_code", 404)
    message = f"there is no {request.method} {request.url.path}"
    return JSONResponse(problem(message, "invalid_request_error"), status)


async def json_body(request: Request) -> dict[str, Any]:
    """The body as a JSON object. BadRequest: it is none, too long, or too slow."""
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
    return parse(b"".join(parts))


async def unless_gone(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
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
