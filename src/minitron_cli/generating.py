"""One answer of `minitron generate`: load, stream, and tell what happened."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minitron_cli.models import open_checked
from minitron_cli.output import Output
from minitron_engine.context import ContextSettings, open_context
from minitron_engine.devices import GpuLayers, missing_gpu_build
from minitron_engine.generation import Generation, GenerationSettings, generate, prompt_tokens
from minitron_engine.model import Model
from minitron_engine.sampling import settings_for

_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class Request:
    """Everything that the command line said; a context of 0 tokens means: choose one.

    sampling: the settings that were given; the model's metadata may recommend others.
    """

    model: Path
    prompt: str
    sampling: Mapping[str, Any]
    n_predict: int
    stop: tuple[str, ...]
    context: ContextSettings
    gpu_layers: GpuLayers
    stream: bool
    echo: bool
    stats: bool


def answer(request: Request, out: Output) -> int:
    """Generate and print; returns the exit code: 130 after Ctrl-C, with what came until then."""
    result = Generation()
    hint = missing_gpu_build()
    if hint:
        out.note(hint)
    n_ctx = request.context.n_ctx or _DEFAULT_CONTEXT
    with open_checked(request.model, request.gpu_layers, n_ctx) as model:
        if out.interactive:
            out.note(f"running on {model.device}")
        tokens = prompt_tokens(model, request.prompt)
        settings = _context(request, model, len(tokens))
        if request.echo and not out.as_json:
            out.text(request.prompt, end="")
        sampling = settings_for(model, request.sampling)
        generation = GenerationSettings(sampling, request.n_predict, request.stop)
        with open_context(model, settings) as context:
            try:
                for piece in generate(context, tokens, generation, result):
                    if request.stream:
                        out.text(piece, end="")
            except KeyboardInterrupt:
                result.finish_reason = "interrupted"
        _finish(request, out, result, model.device)
    return 130 if result.finish_reason == "interrupted" else 0


def _context(request: Request, model: Model, prompt: int) -> ContextSettings:
    if request.context.n_ctx:
        return request.context
    wanted = max(_DEFAULT_CONTEXT, prompt + max(request.n_predict, 0))
    # a model that was trained on less than this gives nonsense beyond
    return replace(request.context, n_ctx=min(wanted, max(model.n_ctx_train, 8)))


def _finish(request: Request, out: Output, result: Generation, device: str) -> None:
    seed = request.sampling["seed"]
    if out.as_json:
        out.document(
            {
                "model": str(request.model),
                "prompt": request.prompt,
                "text": result.text,
                "tokens": result.tokens,
                "finish_reason": result.finish_reason,
                "seed": seed,
                "prompt_tokens": result.prompt_tokens,
                "prompt_tokens_per_second": round(result.prompt_tokens_per_second, 2),
                "tokens_per_second": round(result.tokens_per_second, 2),
                "time_to_first_token_s": round(result.first_token_seconds, 4),
                "device": device,
            }
        )
        return
    out.text("" if request.stream else result.text)
    if result.finish_reason == "context":
        out.note("stopped: the context is full; --ctx makes it larger")
    if request.stats:
        out.note(
            f"{len(result.tokens)} tokens at {result.tokens_per_second:.1f}/s, prompt of "
            f"{result.prompt_tokens} at {result.prompt_tokens_per_second:.1f}/s, first after "
            f"{result.first_token_seconds:.3f} s; seed {seed}; {result.finish_reason}; {device}"
        )
