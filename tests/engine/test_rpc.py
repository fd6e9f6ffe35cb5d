"""Devices of other machines: the servers are children of this process, where the build has RPC."""

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minitron_core.errors import Denied, MinitronError, Unsupported, Usage
from minitron_engine.llama import rpc
from minitron_engine.llama.binding import api
from minitron_engine.llama.rpc import add_rpc_servers, handshake

MINITRON = [sys.executable, "-W", "error", "-m", "minitron_cli"]
with_rpc = pytest.mark.skipif(
    not api.llama_supports_rpc(), reason="this build has no RPC: make install RPC=1"
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """A listener that answers whoever connects with this, or with nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1 << 10)
                if answer is None:
                    done.wait(10)
                else:  # in pieces, as llama.cpp does
                    client.sendall(answer[:8])
                    time.sleep(0.05)
                    client.sendall(answer[8:])

        done = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        done.set()
        thread.join()


def test_handshake_accepts_this_protocol() -> None:
    with answering(struct.pack("<QBBBx24x", 28, 7, 0, 3)) as address:
        handshake(address)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (struct.pack("<QBBBx24x", 28, 6, 1, 0), Unsupported, "protocol 6.1.0"),
        (struct.pack("<QBBBx24x", 28, 7, 1, 0), Unsupported, "protocol 7.1.0"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Denied, "not an RPC server of llama.cpp"),
        (b"", Denied, "not an RPC server of llama.cpp"),
        (None, Denied, "no RPC server answers"),
    ],
)
def test_handshake_refuses_anything_else(
    answer: bytes | None, error: type[MinitronError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "PATIENCE", 0.3)
    with answering(answer) as address, pytest.raises(error, match=words):
        handshake(address)


@pytest.mark.parametrize("address", ["localhost", ":1", "host:0", "host:99999", "[::1]:50052", ""])
def test_handshake_takes_host_and_port_only(address: str) -> None:
    with pytest.raises(Usage, match="HOST:PORT"):
        handshake(address)


def test_handshake_refuses_an_absent_server() -> None:
    with pytest.raises(Denied, match="no RPC server answers at 127"):
        handshake(f"127.0.0.1:{free_port()}")


@pytest.mark.skipif(bool(api.llama_supports_rpc()), reason="this build has RPC")
def test_add_rpc_servers_needs_a_build_with_rpc() -> None:
    with pytest.raises(Unsupported, match="no RPC") as caught:
        add_rpc_servers(("localhost:50052",))
    assert "RPC=1" in caught.value.hint


@pytest.fixture
def server() -> Iterator[Callable[[], tuple[str, subprocess.Popen[bytes]]]]:
    """Starts RPC servers with one thread each, and ends them all."""
    started = []

    def start() -> tuple[str, subprocess.Popen[bytes]]:
        address = f"127.0.0.1:{free_port()}"
        command = [*MINITRON, "rpc-server", address, "--threads", "1"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        started.append(process)
        for _ in range(300):
            assert process.poll() is None
            try:
                handshake(address)
                return address, process
            except Denied:
                time.sleep(0.1)
        raise AssertionError("the server does not listen")

    yield start
    for process in started:
        process.kill()
        process.wait()


def generated(model: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*MINITRON, "generate", str(model), "The old house stood", "--temp", "0", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@with_rpc
def test_generate_over_rpc_equals_local(
    server: Callable[[], tuple[str, subprocess.Popen[bytes]]], nano_llama: Path
) -> None:
    addresses = ",".join(server()[0] for _ in range(2))
    words = ("-n", "48", "--json", "--threads", "2")
    here = json.loads(generated(nano_llama, *words).stdout)
    there = generated(nano_llama, *words, "--rpc", addresses, "--gpu-layers", "all")
    assert there.returncode == 0, there.stderr
    assert "private network" in there.stderr
    document = json.loads(there.stdout)
    assert document["tokens"] == here["tokens"]
    assert all(address in document["device"] for address in addresses.split(","))
    # layers on the second one only, the rest here
    partly = generated(
        nano_llama, *words, "--rpc", addresses, "--device", "RPC1", "--gpu-layers", "2"
    )
    document = json.loads(partly.stdout)
    assert document["tokens"] == here["tokens"]
    assert "2 of" in document["device"] and addresses.split(",")[1] in document["device"]


@with_rpc
def test_generate_over_rpc_reports_a_dead_server(
    server: Callable[[], tuple[str, subprocess.Popen[bytes]]], nano_llama: Path
) -> None:
    address, process = server()
    command = [*MINITRON, "generate", str(nano_llama), "The old", "-n", "-1", "--context-shift"]
    command += ["--ctx", "64", "--ignore-eos", "--rpc", address, "--gpu-layers", "all", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.read(20)
        process.kill()
        running.stdout.read()
        told = running.stderr.read().decode()
    assert running.returncode == 7
    assert told.startswith("error: an RPC server stopped answering")
    assert len(told.splitlines()) == 2


@with_rpc
def test_rpc_server_refuses_a_taken_port(
    server: Callable[[], tuple[str, subprocess.Popen[bytes]]],
) -> None:
    address, _ = server()
    second = subprocess.run([*MINITRON, "rpc-server", address], capture_output=True, text=True)
    assert second.returncode == 7
    assert f"error: cannot listen at {address}" in second.stderr
