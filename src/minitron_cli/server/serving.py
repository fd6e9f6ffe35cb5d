"""`minitron serve`: load a model, listen, and serve until interrupted."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from minitron.generation import DEFAULT_CONTEXT, context_size
from minitron.loading import load
from minitron_cli.inputs import note_full_gpu, note_long_context, note_missing_gpu
from minitron_cli.output import Output
from minitron_core.errors import MinitronError, Unsupported, Usage
from minitron_engine.generation.slots import Slots
from minitron_engine.isolation.chat_template import ChatTemplate, open_template
from minitron_engine.llama.adapters import Adapter, apply_adapters
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings, GpuLayers, ModelSettings

try:
    import uvicorn

    from minitron_cli.server.app import LOOPBACK, Service, make_app
    from minitron_cli.server.worker import Worker
except ImportError as error:
    raise MinitronError(
        f"{error.name} is not installed, which minitron serve needs",
        "pip install 'minitron[serve]'",
    ) from error

_SECONDS_TO_LEAVE = 3


@dataclass(frozen=True)
class ServeRequest:
    """The options of the command; the context's n_ctx is that of each client."""

    model: Path
    name: str
    host: str
    port: int
    api_key: str
    parallel: int
    waiting: int
    context: ContextSettings
    gpu_layers: GpuLayers
    adapters: tuple[Adapter, ...] = ()
    origins: tuple[str, ...] = ()


def serve_model(request: ServeRequest, out: Output) -> None:
    """Serve until Ctrl-C. The port is taken before the model is loaded."""
    note_missing_gpu(out, request.gpu_layers)
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(request.host, request.port))
        n_ctx, parallel = request.context.n_ctx or DEFAULT_CONTEXT, request.parallel
        settings = replace(request.context, n_ctx=n_ctx * parallel, n_seq=parallel)
        loading = ModelSettings(request.model, request.gpu_layers, context=settings)
        model = stack.enter_context(load(loading))
        note_full_gpu(out, model)
        note_long_context(out, model, request.context.n_ctx)
        if not request.context.n_ctx:
            settings = replace(settings, n_ctx=context_size(model) * parallel)
        context = stack.enter_context(open_context(model, settings))
        apply_adapters(context, request.adapters)
        template = _template(model, stack.enter_context, out)
        worker = Worker(Slots(context, request.parallel), request.waiting)
        stack.callback(worker.stop)
        key, origins = request.api_key, request.origins
        service = Service(request.name, model, template, worker, key, origins)
        _announce(request, listener, service, out)
        configuration = uvicorn.Config(
            make_app(service, request.host),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_SECONDS_TO_LEAVE,
        )
        uvicorn.Server(configuration).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise MinitronError(
            f"cannot listen on {host}, port {port}: {error.strerror}", "choose another --port"
        ) from error
    except OverflowError as error:
        raise Usage(f"{port} is not a port") from error


def _template(model: Model, enter: Callable[..., ChatTemplate], out: Output) -> ChatTemplate | None:
    """The model's template, rendered once: one that hangs would hang with every request."""
    try:
        template = enter(open_template(model))
        template.render([{"role": "user", "content": "Hello"}])
    except Unsupported:
        out.note("the model has no chat template: only /v1/completions is served")
        return None
    except MinitronError as error:
        out.note(f"{error}: only /v1/completions is served")
        return None
    return template


def _announce(
    request: ServeRequest, listener: socket.socket, service: Service, out: Output
) -> None:
    host = f"[{request.host}]" if ":" in request.host else request.host
    url = f"http://{host}:{listener.getsockname()[1]}/v1"
    if request.host not in LOOPBACK and not request.api_key:
        out.note("anyone who reaches this address may use the model: --api-key asks for a key")
    if out.as_json:
        out.document(
            {
                "url": url,
                "model": service.name,
                "parallel": request.parallel,
                "ctx": service.worker.n_ctx,
                "device": service.model.device,
            }
        )
        return
    out.text(url)
    out.note(
        f"{service.name} on {service.model.device}: {request.parallel} clients at once with "
        f"{service.worker.n_ctx} tokens each; Ctrl-C stops it"
    )
