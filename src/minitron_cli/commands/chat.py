"""minitron chat: a conversation with a model that was trained for it."""

from typing import Annotated

import typer

from minitron_cli.options.generation import AdapterOptions
from minitron_cli.options.groups import expanded
from minitron_cli.options.parameters import (
    CacheTypeK,
    CacheTypeV,
    FlashAttention,
    GpuLayers,
    Json,
    ModelPath,
    Quiet,
    Threads,
    Verbose,
    gpu_layers,
)
from minitron_cli.options.sampling import SamplingOptions

EXAMPLES = """minitron chat someone/Nemotron-Mini-4B-Instruct-GGUF:Q4_K_M
minitron chat model.gguf --system "Answer in one sentence." --temp 0.2
minitron chat base-model.gguf --raw
printf 'Who are you?\\nSay it shorter.\\n' | minitron chat model.gguf -q"""


@expanded
def chat(
    model: ModelPath,
    adapters: AdapterOptions,
    sampling: SamplingOptions,
    system: Annotated[
        str | None, typer.Option("--system", "-sys", help="The instructions of the model.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="No template: the model continues what you write.")
    ] = False,
    n_predict: Annotated[
        int, typer.Option("-n", "--n-predict", min=-1, help="Longest answer in tokens; -1: no end.")
    ] = -1,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End an answer before this text.")
    ] = None,
    ctx: Annotated[
        int | None, typer.Option("--ctx", "-c", min=64, help="Context in tokens; 4096 by default.")
    ] = None,
    layers: GpuLayers = "auto",
    cache_type_k: CacheTypeK = "f16",
    cache_type_v: CacheTypeV = "f16",
    flash_attn: FlashAttention = "auto",
    threads: Threads = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Talk with a model through its own chat template; lines of a pipe are turns, too."""
    from minitron_cli.generation.chatting import ChatRequest, converse
    from minitron_cli.inputs import local_model
    from minitron_cli.output import Output
    from minitron_core.errors import Usage
    from minitron_engine.llama.settings import ContextSettings

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    if raw and system:
        raise Usage("--system needs the chat template that --raw does without")
    # between the parts of a long prompt, Ctrl-C is heard
    context = ContextSettings(
        n_ctx=ctx or 0,
        n_batch=512,
        n_outputs=1,
        threads=threads,
        flash_attention=flash_attn,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
    )
    request = ChatRequest(
        model=local_model(model, out),
        system=system,
        raw=raw,
        sampling=sampling.given(),
        n_predict=n_predict,
        stop=tuple(stop or ()),
        context=context,
        gpu_layers=gpu_layers(layers),
        adapters=adapters.adapters(),
    )
    raise typer.Exit(converse(request, out))
