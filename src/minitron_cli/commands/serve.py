"""minitron serve: an OpenAI-compatible server for one model."""

from typing import Annotated

import typer

from minitron_cli.options.generation import AdapterOptions, DeviceOptions, SpeculationOptions
from minitron_cli.options.parameters import ConsoleOptions, ModelPath, RuntimeOptions, gpu_layers
from minitron_cli.options.sampling import SamplingOptions
from minitron_cli.options.server import AddressOptions, AnswerOptions

EXAMPLES = """minitron serve model-Q4_K_M.gguf
MINITRON_API_KEY=secret minitron serve someone/Model-GGUF:Q4_K_M --host 0.0.0.0 --parallel 8
minitron serve model-Q8_0.gguf --draft model-Q4_0.gguf --temp 0.2 --request-log requests.jsonl
curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' \\\\
  -d '{"prompt": "The old house", "max_tokens": 32}'"""


def serve(
    model: ModelPath,
    address: AddressOptions,
    answers: AnswerOptions,
    sampling: SamplingOptions,
    speculation: SpeculationOptions,
    adapters: AdapterOptions,
    spread: DeviceOptions,
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
    """Serve the OpenAI API and a chat page; many clients in one decode."""
    from minitron_cli.inputs import local_model
    from minitron_cli.server.serving import ServeRequest, serve_model

    out = console.output()
    request = ServeRequest(
        model=local_model(model, out),
        address=address,
        answers=answers,
        sampling=sampling.given_for_many(),
        speculation=speculation.resolved(out),
        # long prompts go in small parts, so that the answers of others keep flowing
        context=runtime.context(ctx, n_batch=512),
        gpu_layers=gpu_layers(runtime.layers, out),
        placement=spread.placement(out),
        adapters=adapters.adapters(),
    )
    serve_model(request, out)
