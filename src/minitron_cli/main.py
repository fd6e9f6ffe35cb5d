"""The `minitron` command: registration, and the one place where errors end."""

import gc
import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from minitron_engine.process import address_space, fatal_signals
from minitron_engine.process.aborts import on_abort

# in the order of --help; each is a module of the same name, and a function in it
COMMANDS = (
    "pull",
    "texts",
    "convert",
    "imatrix",
    "imatrix-merge",
    "imatrix-stats",
    "sensitivity",
    "quantize",
    "ppl",
    "tasks",
    "generate",
    "chat",
    "serve",
    "rpc-server",
    "bench",
    "run",
    "verify",
    "inspect",
    "advise",
    "card",
    "push",
    "doctor",
)
WRITING = ("convert", "imatrix", "imatrix-merge", "sensitivity", "quantize", "run")
OUTPUT_RULE = (
    "They go beside the source if that folder is writable, else, and for sources on the Hub, to "
    "the current folder. Run again with the same inputs, the command says that they are up to date "
    "and ends with 0; only --force replaces files that were made from something else."
)
# that start a search for garbage: numpy alone makes more than Python's 700 many times
_NEW_OBJECTS = 10_000
_SETTINGS: dict[str, Any] = {
    "rich_markup_mode": "rich",
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class _Loaded(Mapping[str, Any]):
    """The commands, each loaded when it is used, which saves a third of the start-up time."""

    def __init__(self) -> None:
        self._commands: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        if name not in self._commands:
            self._commands[name] = self._load(name)
        return self._commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    @staticmethod
    def _load(name: str) -> Any:
        function = name.replace("-", "_")
        from minitron_cli.options.groups import expanded

        module = import_module(f"minitron_cli.commands.{function}")
        lines = "\n\n".join(f"  {line}" for line in module.EXAMPLES.splitlines())
        alone = typer.Typer(add_completion=False, **_SETTINGS)
        command = expanded(getattr(module, function))
        files = f"[bold]Files[/]\n\n  {OUTPUT_RULE}\n\n" if name in WRITING else ""
        alone.command(name, cls=_Command, epilog=f"{files}[bold]Examples[/]\n\n{lines}")(command)
        return typer.main.get_command(alone)


class _Command(TyperCommand):
    """A command that also understands llama.cpp's names, and options without their value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from minitron_cli.options.llama_names import fill_in_trained_context, translated
        from minitron_cli.options.optional_values import with_values

        ours = translated(with_values(args, self.params), self.params)
        rest = super().parse_args(ctx, ours)
        fill_in_trained_context(ctx.params)
        return rest

    def invoke(self, ctx: Any) -> Any:
        if not gc.isenabled():  # since startup.main
            gc.freeze()  # what was loaded until now stays
            gc.set_threshold(_NEW_OBJECTS)
            gc.enable()
        return super().invoke(ctx)


class _Group(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = cast(Any, _Loaded())

    def format_help(self, ctx: Any, formatter: Any) -> None:
        # a list of the commands needs their summaries, not their options
        self.commands = {name: TyperCommand(name, help=_docstring(name)) for name in COMMANDS}
        super().format_help(ctx, formatter)


def _docstring(command: str) -> str:
    """The help of a command, read from its source without loading it."""
    import ast

    name = command.replace("-", "_")
    source = Path(__file__).with_name("commands") / f"{name}.py"
    body = ast.parse(source.read_text(encoding="utf-8")).body
    functions = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)
    return ast.get_docstring(next(functions)) or ""


app = typer.Typer(
    name="minitron",
    cls=_Group,
    help="Convert, quantize, measure and run Minitron models as GGUF.",
    no_args_is_help=True,
    **_SETTINGS,
)


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
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names in a file may not be Unicode, and a terminal may know few characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        fatal_signals.install()
        address_space.reserve()
        app()
    except BrokenPipeError:
        # the reader of a pipe left: nothing more can be written, not even at the interpreter's exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("MINITRON_DEBUG") == "1":
            raise
        sys.exit(_report(error))


def _leave(error: Exception) -> None:
    # a fatal error in llama.cpp or a mapped file, perhaps in another thread: nothing is cleaned up
    code = 1
    try:
        with suppress(Exception):
            from minitron_cli.progress.displays import close_displays

            close_displays()
            sys.stdout.flush()
        code = _report(error)
    finally:
        os._exit(code)


def _report(error: Exception) -> int:
    address_space.release()
    from minitron_cli.errors import explain
    from minitron_cli.output import Output

    failure = explain(error)
    if failure is None:
        Output().error(
            f"{type(error).__name__}: {error}",
            "this is a bug in minitron; MINITRON_DEBUG=1 shows where it happened",
        )
        return 1
    Output().error(failure.message, failure.hint)
    return failure.exit_code
