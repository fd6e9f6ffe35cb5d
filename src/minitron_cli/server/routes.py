"""Health, the model, counters and embeddings."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from minitron_cli.server.embeddings import embed
from minitron_cli.server.errors import problem
from minitron_cli.server.http import json_body
from minitron_cli.server.service import Service

_PROMETHEUS = "text/plain; version=0.0.4"


class Routes:
    """The handlers, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._started = int(time.time())

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

    async def metrics(self, _request: Request) -> Response:
        """Counters for Prometheus."""
        text = self._service.metrics.text(self._service.worker)
        return PlainTextResponse(text, media_type=_PROMETHEUS)

    async def embeddings(self, request: Request) -> Response:
        """Vectors of texts."""
        return await embed(await json_body(request), self._service)

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
                "chat_template": self._service.template is not None,
            },
        }
