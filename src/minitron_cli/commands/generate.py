"""minitron generate: continue a prompt, streamed."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.generation import AdapterOptions, DeviceOptions, SpeculationOptions
from minitron_cli.options.parameters import ConsoleOptions, ModelPath, RuntimeOptions, gpu_layers
from minitron_cli.options.sampling import SamplingOptions

EXAMPLES = """minitron generate out/nano-llama-Q4_K_M.gguf "The old house stood"
minitron generate someone/Minitron-4B-Base-GGUF:Q4_K_M "The old house stood"
minitron generate model.gguf "Once" -n 256 --temp 0 --stats
echo "Dear Sir," | minitron generate model.gguf --seed 7 --stop "Yours"
minitron generate model-Q8_0.gguf "Once" --temp 0 --draft model-Q2_K.gguf --stats
minitron generate model.gguf -f long.txt --prompt-cache long.cache --lora-scaled style.gguf=0.5
minitron generate model.gguf -f prompt.txt --json-schema schema.json --json"""


def generate(
    model: ModelPath,
    sampling: SamplingOptions,
    speculation: SpeculationOptions,
    adapters: AdapterOptions,
    spread: DeviceOptions,
    prompt: Annotated[str | None, typer.Argument(help="What to continue.")] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="A file with the prompt; - is stdin.")
    ] = None,
    n_predict: Annotated[
        int,
        typer.Option("-n", "--n-predict", min=-1, help="Tokens at most; -1: no limit."),
    ] = 128,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text.")
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            "-c",
            min=8,
            envvar="MINITRON_CTX",
            help="Context in tokens; 4096 or what fits.",
        ),
    ] = None,
    context_shift: Annotated[
        bool, typer.Option("--context-shift", help="Drop old tokens when the context is full.")
    ] = False,
    keep: Annotated[
        int, typer.Option(min=-1, help="Tokens of the prompt to keep then; -1: all.")
    ] = 0,
    prompt_cache: Annotated[
        Path | None, typer.Option(help="Save the computed prompt in this file, and reuse it.")
    ] = None,
    prompt_cache_ro: Annotated[
        bool, typer.Option("--prompt-cache-ro", help="Do not write the prompt cache.")
    ] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print at the end.")] = False,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt too.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Speed and seed on stderr.")] = False,
    *,
    runtime: RuntimeOptions,
    console: ConsoleOptions,
) -> None:
    """Generate text with llama.cpp, on a GPU where there is one."""
    from minitron_cli.generation.generating import GenerateRequest, answer
    from minitron_cli.inputs import check_output, local_model

    out = console.output()
    check_output(prompt_cache)
    request = GenerateRequest(
        model=local_model(model, out),
        prompt=_read_prompt(prompt, file),
        sampling=sampling.given(),
        generation={
            "n_predict": n_predict,
            "stop": tuple(stop or ()),
            "context_shift": context_shift,
            "keep": keep,
        },
        adapters=adapters.adapters(),
        speculation=speculation.resolved(out),
        prompt_cache=prompt_cache,
        prompt_cache_ro=prompt_cache_ro,
        context=runtime.context(ctx, n_batch=2048),
        placement=spread.placement(out),
        gpu_layers=gpu_layers(runtime.layers, out),
        stream=not (no_stream or out.as_json),
        echo=echo,
        stats=stats,
    )
    raise typer.Exit(answer(request, out))


def _piped() -> str:
    """What stdin brings; bytes that are not UTF-8 survive into the tokens, as those of a file."""
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="surrogateescape")
    return sys.stdin.read().removeprefix("\ufeff")


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    parts = [prompt] if prompt else []
    if file is not None and str(file) != "-":
        from minitron_quant.chunking import read_text

        parts.append(read_text(file))
    elif not sys.stdin.isatty():
        piped = _piped()
        if piped:
            parts.append(piped.removesuffix("\n"))
    return "\n".join(parts)
