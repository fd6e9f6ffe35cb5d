"""Devices of other machines, over llama.cpp's RPC backend."""

import ctypes
import socket
import struct
from ctypes import c_char_p, c_size_t, c_void_p

from minitron_core.errors import Denied, Unsupported, Usage
from minitron_core.quoting import quoted
from minitron_engine.llama import devices
from minitron_engine.llama.library import registry

RPC_WARNING = (
    "RPC servers are trusted without a password or encryption: use them in a private network only"
)
PATIENCE = 5.0  # seconds to wait for a connection, and for an answer
# ggml-rpc.cpp: a command is its number, the size of what follows, and that; here the first one,
# HELLO, with no capabilities of the connection named. Answered by a size and the protocol's version
_PROTOCOL = 7
_CAPABILITIES = 24
_HELLO = struct.pack("<BQ", 14, _CAPABILITIES) + bytes(_CAPABILITIES)
_ANSWER = struct.Struct("<QBBBx")


def add_rpc_servers(servers: tuple[str, ...]) -> None:
    """Add the devices of RPC servers (HOST:PORT) to the local GPUs.

    Raises Unsupported where the build has no RPC, Usage for an address, and Denied for a server
    that does not answer: llama.cpp itself would end the process then, or wait for ever.
    """
    add = ctypes.CFUNCTYPE(c_void_p, c_char_p)(_function("ggml_backend_rpc_add_server"))
    for server in servers:
        handshake(server)
        found = add(server.encode())
        if not found:
            raise Denied(f"the RPC server at {server} offers no devices")
        registry().ggml_backend_register(found)


def offer_devices(address: str, threads: int) -> None:
    """Serve this machine's devices at HOST:PORT, one client at a time, until the process ends.

    It serves the GPUs, or the CPU where there are none, and never returns while it can listen.
    Raises Unsupported where the build has no RPC, Usage for an address, Denied where it cannot
    listen.
    """
    serve = ctypes.CFUNCTYPE(None, c_char_p, c_char_p, c_size_t, c_size_t, c_void_p)(
        _function("ggml_backend_rpc_start_server")
    )
    _host_and_port(address)
    names = [gpu.name for gpu in devices.gpus()] or ["CPU"]
    found = [registry().ggml_backend_dev_by_name(name.encode()) for name in names]
    serve(address.encode(), None, threads, len(found), (c_void_p * len(found))(*found))
    raise Denied(f"cannot listen at {address}", "another program may be using the port")


def _function(name: str) -> int:
    devices.start()
    backend = registry().ggml_backend_reg_by_name(b"RPC")
    if not backend:
        raise Unsupported("this build of llama.cpp has no RPC", "make install RPC=1")
    address: int = registry().ggml_backend_reg_get_proc_address(backend, name.encode())
    return address


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    # llama.cpp takes what stands before the first colon for the host: names and IPv4 only
    if not host or ":" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise Usage(f"{quoted(address)} is not HOST:PORT")
    return host, int(port)


def handshake(server: str) -> None:
    """Check a server with llama.cpp's own HELLO, which llama.cpp itself would await for ever.

    Raises Usage, Denied where no RPC server answers, Unsupported for another protocol version.
    """
    try:
        with socket.create_connection(_host_and_port(server), timeout=PATIENCE) as connection:
            connection.sendall(_HELLO)
            with connection.makefile("rb") as stream:  # the answer may come in pieces
                answer = stream.read(_ANSWER.size)
    except TimeoutError as error:
        hint = "it serves one client at a time: another may be using it"
        raise Denied(f"no RPC server answers at {server}", hint) from error
    except OSError as error:
        raise Denied(f"no RPC server answers at {server}: {error}") from error
    if len(answer) < _ANSWER.size:
        raise Denied(f"{server} is not an RPC server of llama.cpp")
    size, major, minor, patch = _ANSWER.unpack(answer)
    if size != _ANSWER.size - 8 + _CAPABILITIES:
        raise Denied(f"{server} is not an RPC server of llama.cpp")
    if major != _PROTOCOL or minor:
        raise Unsupported(
            f"the RPC server at {server} speaks protocol {major}.{minor}.{patch}, this build "
            f"{_PROTOCOL}.0",
            "both ends need the same llama.cpp",
        )
