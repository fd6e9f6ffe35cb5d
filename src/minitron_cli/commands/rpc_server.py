"""minitron rpc-server: lend this machine's devices to a model that runs elsewhere."""

from typing import Annotated

import typer

from minitron_cli.options.parameters import Quiet, Threads, Verbose

EXAMPLES = """minitron rpc-server 192.168.0.7:50052
minitron generate model.gguf "Once" --rpc 192.168.0.7:50052,192.168.0.8:50052"""


def rpc_server(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="Where to listen.")
    ] = "127.0.0.1:50052",
    threads: Threads = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Lend this machine's GPUs, or its CPU, to --rpc elsewhere, one client at a time."""
    import signal

    from minitron_cli.output import Output
    from minitron_core.cpu_limits import default_threads
    from minitron_engine.llama.rpc import RPC_WARNING, offer_devices

    out = Output(verbose=verbose, quiet=quiet)
    out.note(RPC_WARNING)
    # llama.cpp's loop never comes back to Python, which would handle them
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    offer_devices(address, threads or default_threads())
