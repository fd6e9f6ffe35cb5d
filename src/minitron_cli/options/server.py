"""Options of `serve`: the address, what clients may ask, and what is written down."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from minitron_cli.options.groups import option_group
from minitron_engine.llama.settings import POOLING

# choices that the engine's table knows, which a type checker does not
if TYPE_CHECKING:
    Pooling = str
else:
    Pooling = Literal[tuple(POOLING)]

_answers = partial(typer.Option, rich_help_panel="Answers")


@option_group
class AddressOptions:
    """Where the server listens, and to whom."""

    host: Annotated[
        str, typer.Option("--host", help="The address; 0.0.0.0 is all of this machine's.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = (
        8080
    )
    api_key: Annotated[
        str,
        typer.Option(
            "--api-key",
            envvar="MINITRON_API_KEY",
            show_default=False,
            help="What clients must send; best given in the environment.",
        ),
    ] = ""
    parallel: Annotated[
        int, typer.Option("--parallel", "-np", min=1, max=64, help="Answers at once.")
    ] = 4
    waiting: Annotated[
        int, typer.Option(min=1, help="Requests at work or in the queue; more are refused (503).")
    ] = 512
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="ORIGIN",
            help="A web page's origin that may ask, besides those of this machine; * is any.",
        ),
    ] = None
    name: Annotated[
        str | None, typer.Option("--name", help="The model's name for clients; its file's.")
    ] = None
    request_log: Annotated[
        Path | None,
        typer.Option(
            "--request-log",
            metavar="FILE",
            help="Add a JSON line for each request, without its texts; - is stderr.",
        ),
    ] = None


@option_group
class AnswerOptions:
    """How requests are answered that leave it open."""

    chat_template: Annotated[
        Path | None, _answers(metavar="FILE", help="A Jinja template instead of the model's own.")
    ] = None
    n_predict: Annotated[
        int | None,
        _answers(
            "-n",
            "--n-predict",
            min=-1,
            help="Tokens if max_tokens is not said; -1: no limit.",
        ),
    ] = None
    strict: Annotated[
        bool, _answers("--strict", help="Refuse parameters that the server does not know.")
    ] = False
    pooling: Annotated[
        Pooling | None,
        _answers(help="Make embeddings from the tokens' vectors this way; the model's own."),
    ] = None
