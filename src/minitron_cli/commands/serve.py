"""minitron serve: an OpenAI-compatible server for one model."""

from typing import Annotated

import typer

from minitron_cli.options.generation import AdapterOptions
from minitron_cli.options.parameters import ConsoleOptions, ModelPath, RuntimeOptions, gpu_layers

EXAMPLES = """minitron serve model-Q4_K_M.gguf
MINITRON_API_KEY=secret minitron serve someone/Model-GGUF:Q4_K_M --host 0.0.0.0 --parallel 8
curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' \\\\
  -d '{"prompt": "The old house", "max_tokens": 32}'"""


def serve(
    model: ModelPath,
    adapters: AdapterOptions,
    host: Annotated[
        str, typer.Option("--host", help="The address; 0.0.0.0 is all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")
    ] = 8080,
    api_key: Annotated[
        str,
        typer.Option(
            "--api-key",
            envvar="MINITRON_API_KEY",
            show_default=False,
            help="What clients must send; best given in the environment.",
        ),
    ] = "",
    parallel: Annotated[
        int, typer.Option("--parallel", "-np", min=1, max=64, help="Answers at once.")
    ] = 4,
    waiting: Annotated[
        int, typer.Option(min=1, help="Requests at work or in the queue; more are refused (503).")
    ] = 512,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="ORIGIN",
            help="A web page's origin that may ask, besides those of this machine; * is any.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The model's name for clients; its file's.")
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx", "-c", min=64, envvar="MINITRON_CTX", help="Tokens for each client; 4096."
        ),
    ] = None,
    *,
    runtime: RuntimeOptions,
    console: ConsoleOptions,
) -> None:
    """Serve the OpenAI API: completions, chat, models, streams; many clients in one decode."""
    from minitron_cli.inputs import local_model
    from minitron_cli.server.serving import ServeRequest, serve_model

    out = console.output()
    path = local_model(model, out)
    request = ServeRequest(
        model=path,
        name=name or path.name.removesuffix(".gguf"),
        host=host,
        port=port,
        api_key=api_key,
        parallel=parallel,
        waiting=waiting,
        # long prompts go in small parts, so that the answers of others keep flowing
        context=runtime.context(ctx, n_batch=512, n_outputs=parallel),
        gpu_layers=gpu_layers(runtime.layers, out),
        adapters=adapters.adapters(),
        origins=tuple(cors_origin or ()),
    )
    serve_model(request, out)
