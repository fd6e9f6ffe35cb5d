"""`minitron generate`: load the model, stream one answer, report what happened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minitron.generation import DEFAULT_CONTEXT, context_size
from minitron.loading import load
from minitron_cli.inputs import note_full_gpu, note_long_context, note_missing_gpu
from minitron_cli.options.generation import SpeculationOptions
from minitron_cli.output import Output
from minitron_engine.generation.generate import generate, prompt_ids
from minitron_engine.generation.sampling import settings_for
from minitron_engine.generation.sequence import Sequence
from minitron_engine.generation.steps import Generation, GenerationSettings, Timings
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings, GpuLayers, ModelSettings, Placement

if TYPE_CHECKING:
    from minitron_engine.generation.speculative import Drafter
    from minitron_engine.llama.adapters import Adapter


class GenerateRequest(NamedTuple):
    """The request of the command line; a context of 0 tokens lets the command choose.

    sampling: the settings that were given; the model's metadata may recommend others.
    generation: the other settings of the generation.
    """

    model: Path
    prompt: str
    sampling: Mapping[str, Any]
    generation: Mapping[str, Any]
    context: ContextSettings
    gpu_layers: GpuLayers
    placement: Placement
    adapters: tuple[Adapter, ...]
    speculation: SpeculationOptions
    prompt_cache: Path | None
    prompt_cache_ro: bool
    stream: bool
    echo: bool
    stats: bool


def answer(request: GenerateRequest, out: Output) -> int:
    """Generate and print; returns the exit code, 130 after Ctrl-C with the text until then."""
    result = Generation()
    note_missing_gpu(out, request.gpu_layers)
    planned = replace(request.context, n_ctx=request.context.n_ctx or DEFAULT_CONTEXT)
    loading = ModelSettings(
        request.model, request.gpu_layers, placement=request.placement, context=planned
    )
    with load(loading) as model:
        note_full_gpu(out, model)
        note_long_context(out, model, request.context.n_ctx)
        if out.interactive:
            out.note(f"running on {model.device}" + (f" ({model.reason})" if model.reason else ""))
        tokens = prompt_ids(model, request.prompt)
        settings = _context(request, model, len(tokens))
        if request.echo and not out.as_json:
            out.text(request.prompt, end="")
        with open_context(model, settings) as context:
            if request.adapters:
                from minitron_engine.llama.adapters import apply_adapters

                apply_adapters(context, request.adapters)
            try:
                _generate(request, out, context, tokens, result)
            except KeyboardInterrupt:
                result.finish_reason = "interrupted"
        _finish(request, out, result, model.device)
    return 130 if result.finish_reason == "interrupted" else 0


def _generate(
    request: GenerateRequest, out: Output, context: Context, tokens: list[int], result: Generation
) -> None:
    sampling = settings_for(context.model, request.sampling)
    generation = GenerationSettings(
        sampling, draft_max=request.speculation.draft_max, **request.generation
    )
    sequence = Sequence(context)
    with (
        _prompt_cache(request, out, sequence, result),
        _drafter(request, out, sequence, generation) as drafter,
    ):
        for step in generate(context, tokens, generation, sequence=sequence, drafter=drafter):
            result.add(step)
            if request.stream and step.text:
                out.text(step.text, end="")


@contextmanager
def _prompt_cache(
    request: GenerateRequest, out: Output, sequence: Sequence, result: Generation
) -> Iterator[None]:
    """Load the prompt cache of an earlier run; save it after an answer that is not interrupted."""
    path = request.prompt_cache
    if path is None:
        yield
        return
    from minitron_core.atomic_files import write_whole
    from minitron_engine.generation.prompt_cache import CacheKey, dump, model_hash, restore

    kept = f"{request.context.cache_type_k} {request.context.cache_type_v}"
    key = CacheKey(
        model_hash(request.model),
        " ".join([kept, *(f"{model_hash(a.path)}={a.scale}" for a in request.adapters)]),
    )
    if path.exists():
        reason = restore(sequence, path.read_bytes(), key)
        if reason:
            out.note(f"{path} is not used: {reason}")
    yield
    if not request.prompt_cache_ro and result.finish_reason != "interrupted":
        write_whole(path, dump(sequence, key))


@contextmanager
def _drafter(
    request: GenerateRequest, out: Output, sequence: Sequence, generation: GenerationSettings
) -> Iterator[Drafter | None]:
    speculation, sampling = request.speculation, generation.sampling
    drafting = speculation.lookup or speculation.draft is not None
    if drafting and sampling.greedy and not sampling.plain:
        out.note("no speculative decoding: penalties and the like could change a greedy answer")
    elif speculation.lookup:
        from minitron_engine.generation.speculative import PromptLookup

        yield PromptLookup()
        return
    elif speculation.draft is not None:
        from minitron_engine.generation.speculative import DraftModel

        settings = replace(request.context, n_ctx=sequence.context.n_ctx)
        loading = ModelSettings(
            speculation.draft, request.gpu_layers, placement=request.placement, context=settings
        )
        with (
            load(loading) as model,
            open_context(model, settings) as context,
        ):
            yield DraftModel(Sequence(context), sequence.context.model, speculation.draft_min_p)
        return
    yield None


def _context(request: GenerateRequest, model: Model, prompt: int) -> ContextSettings:
    if request.context.n_ctx:
        return request.context
    tokens = prompt + max(request.generation["n_predict"], 0)
    return replace(request.context, n_ctx=context_size(model, tokens))


def _finish(request: GenerateRequest, out: Output, result: Generation, device: str) -> None:
    seed, timings = request.sampling["seed"], result.timings
    reason = "length" if result.finish_reason == "context" else result.finish_reason
    if out.as_json:
        out.document(
            {
                "model": str(request.model),
                "prompt": request.prompt,
                "text": result.text,
                "tokens": result.tokens,
                "finish_reason": reason,
                "seed": seed,
                "prompt_tokens": timings.prompt_tokens,
                "prompt_tokens_per_second": round(timings.prompt_tokens_per_second, 2),
                "tokens_per_second": round(timings.tokens_per_second, 2),
                "time_to_first_token_s": round(timings.prompt_seconds, 4),
                "device": device,
                "prompt_tokens_reused": timings.reused_tokens,
                **_draft_counts(timings),
            }
        )
        return
    out.text("" if request.stream else result.text)
    if result.finish_reason == "context":
        out.note("stopped: the context is full; --ctx makes it larger")
    if request.stats:
        out.note(
            f"{len(result.tokens)} tokens at {timings.tokens_per_second:.1f}/s, prompt of "
            f"{timings.prompt_tokens} at {timings.prompt_tokens_per_second:.1f}/s, first after "
            f"{timings.prompt_seconds:.3f} s; seed {seed}; {result.finish_reason}; {device}"
        )
        counts = _draft_counts(timings)
        if counts:
            out.note("{accepted} of {drafted} drafted tokens accepted".format(**counts))


def _draft_counts(timings: Timings) -> dict[str, int | None]:
    if timings.drafted is None:
        return {}
    return {"drafted": timings.drafted, "accepted": timings.accepted}
