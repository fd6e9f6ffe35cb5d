"""Many at once: jobs on one folder, one source, one cache, and clients of one server."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hardening import workshop
from hardening.workshop import COMMANDS, Material
from helpers.download_hub import DownloadHub
from helpers.support import EXAMPLES, Served, fails
from minitron_core.atomic_files import write_whole
from minitron_core.errors import MinitronError
from minitron_core.file_lock import exclusive, open_locked

GREEDY = {"model": "nano", "temperature": 0}
PROMPTS = ("The old house", "It was", "When the door of the room", "She", "A dog")


def test_a_file_is_written_by_one(minitron: Any, tmp_path: Path) -> None:
    out = tmp_path / "nano.gguf"
    with open_locked(tmp_path / ".nano.gguf.partial", create=True) as held:
        words = ("convert", EXAMPLES / "nano-nemotron", "-o", out)
        fails(minitron(*words), 1, "nother minitron is writing")
        with pytest.raises(MinitronError, match="another minitron is writing"):
            write_whole(out, b"x")
        assert held.seek(0, os.SEEK_END) == 0 and not out.exists()
    write_whole(out, b"x")
    assert out.read_bytes() == b"x" and list(tmp_path.iterdir()) == [out]


def test_a_lock_that_was_left_or_removed_counts_for_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("left by a job that was killed")
    with exclusive(lock), pytest.raises(MinitronError, match="is working"), exclusive(lock):
        pass
    assert not lock.exists()


# in two processes at once; what stands in each other's way says so and changes nothing
SHARED = ("convert", "imatrix", "quantize", "ppl", "run")


@pytest.mark.harden
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", SHARED)
def test_jobs_on_one_folder(
    name: str, seed: int, whole: Any, material: Material, tmp_path: Path
) -> None:
    command, expected = COMMANDS[name], whole(name)
    draw = random.Random(f"{name} {seed}")
    folder = tmp_path / "job"
    folder.mkdir()
    words = [*command.words(material, folder), *command.resume]
    jobs = []
    for _ in range(4):
        jobs.append(workshop.start(words))
        time.sleep(draw.uniform(0, 0.3 * expected.seconds))
    ends = [(job.communicate(timeout=300)[1], job.returncode) for job in jobs]
    assert all(code == 0 or (code == 1 and "nother minitron" in err) for err, code in ends), ends
    assert 0 in [code for _, code in ends]
    assert workshop.results(folder).items() <= expected.files.items()
    workshop.finish(words)
    assert workshop.results(folder) == expected.files
    print(f"\nTOGETHER {name} {seed}: {[code for _, code in ends]}")  # noqa: T201


@pytest.mark.harden
def test_one_source_for_many_jobs(whole: Any, material: Material, tmp_path: Path) -> None:
    names = ("quantize", "imatrix", "ppl", "tasks", "quantize", "imatrix")
    started = []
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        folder.mkdir()
        expected = whole(name)
        started.append((folder, expected, workshop.start(COMMANDS[name].words(material, folder))))
    for folder, expected, job in started:
        _, err = job.communicate(timeout=300)
        assert job.returncode == 0, err
        assert workshop.results(folder) == expected.files


@pytest.fixture
def hub() -> Iterator[DownloadHub]:
    """A Hub on this machine."""
    with DownloadHub(EXAMPLES / "nano-nemotron", "someone/Nano") as hub:
        yield hub


@pytest.mark.harden
def test_one_cache_of_the_hub(hub: DownloadHub, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "cache")
    words = (sys.executable, "-m", "minitron_cli", "convert", "someone/Nano", "--outtype", "f16")
    jobs = [
        subprocess.Popen(
            [*words, "-o", tmp_path / f"{number}.gguf"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(5)
    ]
    for job in jobs:
        _, err = job.communicate(timeout=300)
        assert job.returncode == 0, err
    assert len({path.read_bytes() for path in tmp_path.glob("*.gguf")}) == 1


@pytest.fixture
def served(material: Material) -> Iterator[Served]:
    words = ("serve", material.level, "--port", 0, "--ctx", 128, "--threads", 2)
    more = ("--waiting", 200, "--parallel", 8, "--name", "nano")
    process = subprocess.Popen(
        [sys.executable, "-m", "minitron_cli", *map(str, (*words, *more))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url
    yield Served(url, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err


class Crowd:
    """Clients that ask again and again until the time is over; some stall, some leave."""

    def __init__(self, served: Served, alone: dict[str, str], until: float) -> None:
        self.address, self.alone, self._until = served.address, alone, until
        self.answered = self.wrong = self.failed = self.left = self.stalled = 0

    def _request(self, prompt: str, **more: Any) -> bytes:
        body = json.dumps({**GREEDY, "prompt": prompt, "max_tokens": 8, **more}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    async def ask(self, prompt: str, **more: Any) -> None:
        """A request, and whether its answer is the one that it gets alone."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(self._request(prompt, **more))
        answer = await reader.read()
        writer.close()
        status, _, rest = answer.partition(b"\r\n\r\n")
        if b" 200 " not in status[:16]:
            self.failed += 1
            return
        if more.get("stream"):
            lines = [line[6:] for line in rest.split(b"\n") if line.startswith(b"data: {")]
            text = "".join(json.loads(line)["choices"][0]["text"] for line in lines)
        else:
            text = json.loads(rest[rest.index(b"{") : rest.rindex(b"}") + 1])["choices"][0]["text"]
        self.answered += 1
        self.wrong += text != self.alone[prompt]

    async def leave(self, prompt: str, after: float) -> None:
        """Ask for much, and go in the middle of it."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(self._request(prompt, max_tokens=100, stream=True, ignore_eos=True))
        await reader.read(50)
        await asyncio.sleep(after)
        writer.transport.abort()
        self.left += 1

    async def stall(self, seconds: float) -> None:
        """Send half of a request, or do not read what comes."""
        _, writer = await asyncio.open_connection(*self.address)
        data = self._request("x", max_tokens=100, stream=True, ignore_eos=True)
        writer.write(data[: len(data) // 2] if seconds < 1 else data)
        await asyncio.sleep(seconds)
        writer.transport.abort()
        self.stalled += 1

    async def client(self, number: int) -> None:
        """One client's time; those from the 40th on misbehave."""
        draw = random.Random(number)
        while time.monotonic() < self._until:
            prompt = draw.choice(PROMPTS)
            if number < 40:
                await self.ask(prompt, **({"stream": True} if number % 2 else {}))
            elif number < 45:
                await self.leave(prompt, draw.uniform(0, 0.3))
            else:
                await self.stall(draw.uniform(0, 2))

    async def all(self, count: int) -> None:
        """All clients together."""
        await asyncio.gather(*(self.client(number) for number in range(count)))


@pytest.mark.parametrize(
    "seconds", [1.5, pytest.param(300, marks=pytest.mark.harden)], ids=["short", "long"]
)
def test_fifty_clients(seconds: float, served: Served) -> None:
    crowd = Crowd(served, dict.fromkeys(PROMPTS, ""), 0)
    for prompt in PROMPTS:
        asyncio.run(_learn(crowd, prompt))
    sizes: list[int] = []

    async def watch() -> None:
        while time.monotonic() < end:
            sizes.append(served.resident)
            await asyncio.sleep(seconds / 60)

    async def everybody() -> None:
        await asyncio.gather(crowd.all(50), watch())

    end = time.monotonic() + seconds
    crowd = Crowd(served, crowd.alone, end)
    asyncio.run(everybody())
    print(  # noqa: T201
        f"\nSERVED {crowd.answered} answered, {crowd.wrong} wrong, {crowd.failed} refused, "
        f"{crowd.left} left midway, {crowd.stalled} stalled in {seconds} s; resident MiB: "
        + " ".join(f"{size >> 20}" for size in sizes[:: max(1, len(sizes) // 12)])
    )
    assert crowd.answered >= 10 and crowd.wrong == crowd.failed == 0
    # after all clients have come and gone at least once it grows no more
    warm, last = sizes[len(sizes) // 4], sizes[-1]
    assert last - warm < 16 << 20


async def _learn(crowd: Crowd, prompt: str) -> None:
    """What a prompt gets alone."""
    reader, writer = await asyncio.open_connection(*crowd.address)
    writer.write(crowd._request(prompt))
    answer = await reader.read()
    writer.close()
    body = answer[answer.index(b"\r\n\r\n") :]
    text = body[body.index(b"{") : body.rindex(b"}") + 1]
    crowd.alone[prompt] = json.loads(text)["choices"][0]["text"]
