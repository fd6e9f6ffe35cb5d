"""The `minitron` command: registration, and the one place where errors end."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from minitron_cli.commands import (
    advise,
    bench,
    card,
    chat,
    convert,
    doctor,
    generate,
    imatrix,
    imatrix_merge,
    imatrix_stats,
    inspect,
    ppl,
    push,
    quantize,
    rpc_server,
    run,
    sensitivity,
    serve,
    tasks,
    verify,
)
from minitron_engine.aborts import on_abort

app = typer.Typer(
    name="minitron",
    help="Convert, quantize, measure and run Minitron models as GGUF.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _register(command: Callable[..., Any], examples: str) -> None:
    lines = "\n\n".join(f"  {line}" for line in examples.splitlines())
    app.command(epilog=f"[bold]Examples[/]\n\n{lines}")(command)


for _command, _examples in (
    (convert.convert, convert.EXAMPLES),
    (imatrix.imatrix, imatrix.EXAMPLES),
    (imatrix_merge.imatrix_merge, imatrix_merge.EXAMPLES),
    (imatrix_stats.imatrix_stats, imatrix_stats.EXAMPLES),
    (sensitivity.sensitivity, sensitivity.EXAMPLES),
    (quantize.quantize, quantize.EXAMPLES),
    (ppl.ppl, ppl.EXAMPLES),
    (tasks.tasks, tasks.EXAMPLES),
    (generate.generate, generate.EXAMPLES),
    (chat.chat, chat.EXAMPLES),
    (serve.serve, serve.EXAMPLES),
    (rpc_server.rpc_server, rpc_server.EXAMPLES),
    (bench.bench, bench.EXAMPLES),
    (run.run, run.EXAMPLES),
    (verify.verify, verify.EXAMPLES),
    (inspect.inspect, inspect.EXAMPLES),
    (advise.advise, advise.EXAMPLES),
    (card.card, card.EXAMPLES),
    (push.push, push.EXAMPLES),
    (doctor.doctor, doctor.EXAMPLES),
):
    _register(_command, _examples)


def _print_version(wanted: bool) -> None:
    if wanted:
        from minitron_cli.doctor import versions

        typer.echo(" · ".join(f"{name} {number}" for name, number in versions().items()))
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show versions and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and leave with an exit code of the contract."""
    on_abort(_leave)
    try:
        app()
    except BrokenPipeError:
        # the reader of a pipe left; nothing more can be written, not even by the interpreter's exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("MINITRON_DEBUG") == "1":
            raise
        sys.exit(_report(error))


def _leave(error: Exception) -> None:
    # llama.cpp aborts the process when this returns, and another thread may be in the middle of it
    code = 1
    try:
        sys.stdout.flush()
        code = _report(error)
    finally:
        os._exit(code)


def _report(error: Exception) -> int:
    from minitron_cli.errors import explain
    from minitron_cli.output import Output

    failure = explain(error)
    if failure is None:
        Output().error(
            f"{type(error).__name__}: {error}",
            "this is a mistake in minitron; MINITRON_DEBUG=1 shows where it happened",
        )
        return 1
    Output().error(failure.message, failure.hint)
    return failure.exit_code
