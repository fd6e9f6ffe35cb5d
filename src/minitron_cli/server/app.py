"""The application: routes by their paths, and what stands before them."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Route

from minitron_cli.server.http import Handler, guarded, not_found
from minitron_cli.server.observe import Observer, RequestLog
from minitron_cli.server.page import chat_page
from minitron_cli.server.routes import Routes
from minitron_cli.server.service import Service
from minitron_cli.server.text_routes import TextRoutes
from minitron_cli.server.token_routes import TokenRoutes

LOOPBACK = ("127.0.0.1", "::1", "localhost")

# pages that this machine serves itself, on any port
_OWN_PAGES = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


def make_app(service: Service, host: str, log: RequestLog | None = None) -> Starlette:
    """The application. Bound to loopback it answers only to loopback's names, so that no web page
    can reach it through a name of its own.
    """
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    pages = Middleware(
        CORSMiddleware,
        allow_origins=service.origins,
        allow_origin_regex=_OWN_PAGES,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["X-Minitron-Ignored"],
    )
    observer = Middleware(Observer, metrics=service.metrics, log=log)
    return Starlette(
        routes=_routes(service),
        middleware=[observer, trusted, pages] if host in LOOPBACK else [observer, pages],
        exception_handlers={404: not_found, 405: not_found},
    )


def _routes(service: Service) -> list[Route]:
    routes, texts, tokens = Routes(service), TextRoutes(service), TokenRoutes(service)
    open_to_all: dict[str, Handler] = {
        "/": chat_page,
        "/health": routes.health,
        "/v1/health": routes.health,
    }
    reading: dict[str, Handler] = {
        "/metrics": routes.metrics,
        "/tokenizer_info": tokens.tokenizer_info,
        "/v1/models": routes.models,
        "/v1/models/{name:path}": routes.model,
    }
    asking: dict[str, Handler] = {
        "/tokenize": tokens.tokenize,
        "/detokenize": tokens.detokenize,
        "/v1/chat/completions": texts.chat,
        "/v1/completions": texts.completions,
        "/v1/embeddings": routes.embeddings,
        "/v1/responses": texts.responses,
    }
    key = service.api_key
    return [
        *(Route(path, handler) for path, handler in open_to_all.items()),
        *(Route(path, guarded(handler, key)) for path, handler in reading.items()),
        *(Route(p, guarded(handler, key), methods=["POST"]) for p, handler in asking.items()),
    ]
