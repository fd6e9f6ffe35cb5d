"""A server in a thread of the tests' process: the application that `minitron serve` runs."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from minitron_cli.server.app import make_app
from minitron_cli.server.service import Service
from minitron_cli.server.worker import Worker
from minitron_engine.generation.embeddings import open_embedder
from minitron_engine.generation.slots import Slots
from minitron_engine.isolation.chat_template import open_template
from minitron_engine.llama.context import open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model


@contextmanager
def serving(
    path: Path, *, n_ctx: int = 256, pooling: str | None = None, **more: Any
) -> Iterator[str]:
    """Serve a model to two clients at once; yields the address. more: fields of Service."""
    with ExitStack() as stack:
        model = stack.enter_context(open_model(ModelSettings(path)))
        settings = ContextSettings(n_ctx=2 * n_ctx, n_batch=512, n_seq=2, n_outputs=64, threads=1)
        context = stack.enter_context(open_context(model, settings))
        template = None
        if model.chat_template:
            template = stack.enter_context(open_template(model))
        if pooling is not None:
            opened = open_embedder(model, ContextSettings(0, 0, threads=1), n_ctx, pooling)
            more["embedder"] = stack.enter_context(opened)
        worker = Worker(Slots(context, 2, n_outputs=64), 64)
        stack.callback(worker.stop)
        service = Service("nano", model, template, worker, **more)
        yield stack.enter_context(_running(service))


@contextmanager
def _running(service: Service) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    configuration = uvicorn.Config(
        make_app(service, "127.0.0.1"), log_config=None, access_log=False, lifespan="off"
    )
    server = uvicorn.Server(configuration)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
