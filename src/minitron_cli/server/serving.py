"""`minitron serve`: load a model, listen, and serve until interrupted."""

import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minitron.generation import DEFAULT_CONTEXT, context_size
from minitron.loading import load
from minitron_cli.inputs import note_full_gpu, note_long_context, note_missing_gpu
from minitron_cli.options.generation import SpeculationOptions
from minitron_cli.options.server import AddressOptions, AnswerOptions
from minitron_cli.output import Output
from minitron_core.errors import MinitronError, Unsupported, Usage
from minitron_engine.generation.embeddings import Embedder, open_embedder, pooling_of
from minitron_engine.generation.sampler import open_sampler
from minitron_engine.generation.sampling import settings_for
from minitron_engine.generation.sequence import Sequence
from minitron_engine.generation.slots import Slots
from minitron_engine.generation.speculative import Drafter, DraftModel, PromptLookup
from minitron_engine.isolation.chat_template import (
    ChatTemplate,
    open_template,
    open_template_text,
)
from minitron_engine.llama.adapters import Adapter, apply_adapters
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings, GpuLayers, ModelSettings, Placement

try:
    import uvicorn

    from minitron_cli.server.app import LOOPBACK, make_app
    from minitron_cli.server.observe import RequestLog
    from minitron_cli.server.prepare import ServerDefaults
    from minitron_cli.server.service import Service
    from minitron_cli.server.worker import Worker
except ImportError as error:
    raise MinitronError(
        f"{error.name} is not installed, which minitron serve needs",
        "pip install 'minitron[serve]'",
    ) from error

_SECONDS_TO_LEAVE = 3
# rows of logits of a decode: so many tokens of a prompt are scored at once for logprobs
_LOGIT_ROWS = 32


@dataclass(frozen=True)
class ServeRequest:
    """The options of the command; the context's n_ctx is that of each client.

    sampling: what requests get that do not say it; fields of SamplingSettings by name.
    """

    model: Path
    address: AddressOptions
    answers: AnswerOptions
    sampling: Mapping[str, Any]
    speculation: SpeculationOptions
    context: ContextSettings
    gpu_layers: GpuLayers
    placement: Placement
    adapters: tuple[Adapter, ...] = ()


def serve_model(request: ServeRequest, out: Output) -> None:
    """Serve until Ctrl-C. The port is taken before the model is loaded."""
    note_missing_gpu(out, request.gpu_layers)
    address = request.address
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(address.host, address.port))
        log = stack.enter_context(_request_log(address.request_log))
        n_ctx = request.context.n_ctx or DEFAULT_CONTEXT
        model = stack.enter_context(load(_loading(request, request.model, _shared(request, n_ctx))))
        note_full_gpu(out, model)
        note_long_context(out, model, request.context.n_ctx)
        if not request.context.n_ctx:
            n_ctx = context_size(model)
        _check_defaults(model, request.sampling)
        settings = _shared(request, n_ctx)
        context = stack.enter_context(open_context(model, settings))
        apply_adapters(context, request.adapters)
        template = stack.enter_context(_template(model, request.answers.chat_template, out))
        drafters = stack.enter_context(_drafters(request, model, n_ctx))
        embedder = stack.enter_context(_embedder(request, model, n_ctx))
        slots = Slots(context, address.parallel, n_outputs=settings.n_outputs, drafters=drafters)
        worker = Worker(slots, address.waiting)
        stack.callback(worker.stop)
        service = Service(
            name=address.name or request.model.name.removesuffix(".gguf"),
            model=model,
            template=template,
            worker=worker,
            api_key=address.api_key,
            origins=tuple(address.cors_origin or ()),
            defaults=ServerDefaults(
                request.sampling,
                request.answers.n_predict,
                request.answers.strict,
                request.speculation.draft_max,
            ),
            embedder=embedder,
        )
        _announce(request, listener, service, out)
        configuration = uvicorn.Config(
            make_app(service, address.host, log),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_SECONDS_TO_LEAVE,
        )
        uvicorn.Server(configuration).run(sockets=[listener])


def _shared(request: ServeRequest, n_ctx: int) -> ContextSettings:
    """The context of all clients, with n_ctx tokens for each."""
    parallel, speculation = request.address.parallel, request.speculation
    drafting = speculation.lookup or speculation.draft is not None
    rows = max(_LOGIT_ROWS, parallel * (1 + speculation.draft_max * drafting))
    return replace(
        request.context,
        n_ctx=n_ctx * parallel,
        n_seq=parallel,
        n_outputs=min(rows, request.context.n_batch),
    )


def _loading(request: ServeRequest, path: Path, context: ContextSettings) -> ModelSettings:
    return ModelSettings(path, request.gpu_layers, placement=request.placement, context=context)


def _check_defaults(model: Model, sampling: Mapping[str, Any]) -> None:
    """Refuse at the start what every request would be refused for."""
    with open_sampler(model, settings_for(model, {"seed": 0, **sampling})):
        pass


@contextmanager
def _drafters(request: ServeRequest, model: Model, n_ctx: int) -> Iterator[list[Drafter]]:
    """What drafts tokens for each client; a draft model has a context for each of them."""
    speculation, parallel = request.speculation, request.address.parallel
    if speculation.lookup:
        yield [PromptLookup() for _ in range(parallel)]
        return
    if speculation.draft is None:
        yield []
        return
    settings = replace(request.context, n_ctx=n_ctx, n_outputs=1)
    with ExitStack() as stack:
        small = stack.enter_context(load(_loading(request, speculation.draft, settings)))
        contexts = [stack.enter_context(open_context(small, settings)) for _ in range(parallel)]
        yield [DraftModel(Sequence(each), model, speculation.draft_min_p) for each in contexts]


@contextmanager
def _embedder(request: ServeRequest, model: Model, n_ctx: int) -> Iterator[Embedder | None]:
    """What makes embeddings, where the model says how or the user does."""
    pooling = request.answers.pooling or pooling_of(model)
    if pooling is None:
        yield None
        return
    with open_embedder(model, request.context, n_ctx, pooling) as embedder:
        yield embedder


@contextmanager
def _template(model: Model, file: Path | None, out: Output) -> Iterator[ChatTemplate | None]:
    """The template, rendered once: one that hangs would hang with every request."""
    with ExitStack() as stack:
        template: ChatTemplate | None = None
        try:
            template = stack.enter_context(_opened_template(model, file))
            template.render([{"role": "user", "content": "Hello"}])
        except Unsupported:
            out.note("the model has no chat template: only /v1/completions is served")
            template = None
        except MinitronError as error:
            if file is not None:
                raise
            out.note(f"{error}: only /v1/completions is served")
            template = None
        yield template


@contextmanager
def _opened_template(model: Model, file: Path | None) -> Iterator[ChatTemplate]:
    if file is None:
        with open_template(model) as template:
            yield template
        return
    from minitron_quant.chunking import read_text

    bos, eos = model.special(model.bos), model.special(model.eos)
    with open_template_text(read_text(file), bos, eos) as template:
        yield template


@contextmanager
def _request_log(path: Path | None) -> Iterator[RequestLog | None]:
    if path is None:
        yield None
    elif str(path) == "-":
        yield RequestLog(sys.stderr)
    else:
        try:
            stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise MinitronError(f"cannot write {path}: {error.strerror}") from error
        with stream:
            yield RequestLog(stream)


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


def _announce(
    request: ServeRequest, listener: socket.socket, service: Service, out: Output
) -> None:
    address = request.address
    host = f"[{address.host}]" if ":" in address.host else address.host
    page = f"http://{host}:{listener.getsockname()[1]}"
    if address.host not in LOOPBACK and not address.api_key:
        out.note("anyone who reaches this address may use the model: --api-key asks for a key")
    if out.as_json:
        out.document(
            {
                "url": f"{page}/v1",
                "page": f"{page}/",
                "model": service.name,
                "parallel": address.parallel,
                "ctx": service.worker.n_ctx,
                "device": service.model.device,
            }
        )
        return
    out.text(f"{page}/v1")
    out.note(
        f"{service.name} on {service.model.device}: {address.parallel} clients at once with "
        f"{service.worker.n_ctx} tokens each; a chat page at {page}/; Ctrl-C stops it"
    )
