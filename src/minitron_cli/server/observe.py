"""What is written down of every request: a count for the metrics, and a line in the log."""

import json
import time
from datetime import UTC, datetime
from typing import TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minitron_cli.server.metrics import Metrics

_GONE = 499  # the client left before its answer


class RequestLog:
    """A JSON document for each request, on a line; no texts of prompts or answers."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, document: dict[str, object]) -> None:
        """Add a line; a disk that is full must not end answers."""
        try:
            self._stream.write(json.dumps(document) + "\n")
            self._stream.flush()
        except OSError:
            pass


class Observer:
    """Middleware that sees each request's status and how long its whole answer took."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: RequestLog | None) -> None:
        self._app, self._metrics, self._log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, then count and log."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), _GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            # a path that has no route is any text
            route = scope.get("route")
            self._metrics.answered(getattr(route, "path", "other"), status)
            if self._log is not None:
                self._log.write(_line(scope, status, time.perf_counter() - started))


def _line(scope: Scope, status: int, seconds: float) -> dict[str, object]:
    count = scope.get("state", {}).get("usage")
    used = count() if count else {}
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "client": (scope.get("client") or [""])[0],
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 4),
        "prompt_tokens": used.get("prompt_tokens"),
        "completion_tokens": used.get("completion_tokens"),
    }
