"""minitron chat: a conversation with a chat model."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.generation import AdapterOptions, DeviceOptions
from minitron_cli.options.parameters import ConsoleOptions, ModelPath, RuntimeOptions, gpu_layers
from minitron_cli.options.sampling import SamplingOptions

EXAMPLES = """minitron chat someone/Nemotron-Mini-4B-Instruct-GGUF:Q4_K_M
minitron chat model.gguf --system "Answer in one sentence." --temp 0.2
minitron chat model.gguf --chat-template chatml.jinja
minitron chat base-model.gguf --raw
printf 'Who are you?\\nSay it shorter.\\n' | minitron chat model.gguf -q"""


def chat(
    model: ModelPath,
    adapters: AdapterOptions,
    sampling: SamplingOptions,
    spread: DeviceOptions,
    system: Annotated[
        str | None, typer.Option("--system", "-sys", help="The system prompt.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="No template: the model continues what you write.")
    ] = False,
    chat_template: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A Jinja template instead of the model's own."),
    ] = None,
    n_predict: Annotated[
        int,
        typer.Option("-n", "--n-predict", min=-1, help="Longest answer; -1: no limit."),
    ] = -1,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End an answer before this text.")
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx", "-c", min=64, envvar="MINITRON_CTX", help="Context in tokens; 4096 by default."
        ),
    ] = None,
    *,
    runtime: RuntimeOptions,
    console: ConsoleOptions,
) -> None:
    """Talk with a model through its own chat template; piped lines are turns too."""
    from minitron_cli.generation.chatting import ChatRequest, converse
    from minitron_cli.inputs import local_model
    from minitron_core.errors import Usage

    out = console.output()
    if raw and system:
        raise Usage("--system needs the chat template, which --raw leaves out")
    if raw and chat_template:
        raise Usage("--chat-template and --raw exclude each other")
    # small batches, so that Ctrl-C is noticed between the parts of a long prompt
    context = runtime.context(ctx, n_batch=512, n_outputs=1)
    request = ChatRequest(
        model=local_model(model, out),
        system=system,
        raw=raw,
        sampling=sampling.given(),
        n_predict=n_predict,
        stop=tuple(stop or ()),
        context=context,
        gpu_layers=gpu_layers(runtime.layers, out),
        placement=spread.placement(out),
        chat_template=chat_template,
        adapters=adapters.adapters(),
    )
    raise typer.Exit(converse(request, out))
