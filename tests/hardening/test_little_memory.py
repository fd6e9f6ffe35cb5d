"""Commands that get too little memory: what they say, and what they leave."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hardening import workshop
from hardening.workshop import COMMANDS, DONE, READERS, Material, Whole
from helpers.support import EXAMPLES, Ran, fails
from minitron_convert.convert import ConvertSettings, convert

# what libraries write on stderr themselves before they exit
_LIBRARIES = re.compile(r"^(libgomp: |OpenBLAS ).*\n", re.MULTILINE)
# what the C library says, and leaves at once, where a new thread's own data find no room
_LOADER = (127, "cannot allocate memory for thread-local data: ABORT\n")
# address space in MiB: below the first Python does not begin, and the last suffices for all
LIMITS = (*range(60, 260, 10), *range(260, 500, 30), 600, 800, 1200, 2000)
SLOW = ("sensitivity", "size")  # of these every fourth will do
ALL = sorted({*COMMANDS, *READERS})


def attempt(name: str, mebibytes: int, material: Material, folder: Path) -> bool:
    """Run a command in so much address space; whether it was done. It fails as it should."""
    folder.mkdir()
    limit = mebibytes << 20
    words = [*workshop.words_of(name, material, folder), "-q"]
    code, err = workshop.limited(words, RLIMIT_AS=(limit, limit))
    if code == DONE.get(name, 0):
        return True
    if (code, err) == _LOADER:
        return False
    assert code == 6, (mebibytes, code, err)
    fails(Ran(code, "", _LIBRARIES.sub("", err)), 6)
    return False


# who meets it, in this order: the loader, the beginning, llama.cpp, its threads, its exceptions
SOME = [
    ("generate", 60),
    ("generate", 130),
    ("ppl", 160),
    ("generate", 170),
    ("generate", 190),
    ("quantize", 210),
]


@pytest.mark.parametrize(("name", "mebibytes"), SOME)
def test_some_commands(name: str, mebibytes: int, material: Material, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = attempt(name, mebibytes, material, folder)  # it may be enough elsewhere
    assert done or workshop.results(folder) == {}


@pytest.mark.harden
@pytest.mark.parametrize("name", ALL)
def test_every_command(
    name: str, whole: Callable[[str], Whole], material: Material, tmp_path: Path
) -> None:
    """From far too little to enough: one sentence, nothing half done, and then the same result."""
    expected = whole(name).files if name in COMMANDS else {}
    done = []
    limits = LIMITS[::-4][::-1] if name in SLOW else LIMITS
    for mebibytes in limits:
        folder = tmp_path / str(mebibytes)
        done.append(attempt(name, mebibytes, material, folder))
        if name in COMMANDS:
            assert workshop.results(folder).items() <= expected.items(), mebibytes
    assert done[-1]
    least = limits[done.index(True)]
    print(f"\nLIMITED {name} {len(done)} {sum(done)} {least}")  # noqa: T201


# not getrusage: a child begins with the peak of who started it
MEASURE = """
import sys
from pathlib import Path
from minitron_convert.convert import ConvertSettings, convert
from minitron_quant.bench.memory_energy import peak_memory
settings = ConvertSettings(Path(sys.argv[1]), Path(sys.argv[2]), outtype=sys.argv[3], force=True)
promised = convert(settings).memory
print(promised, peak_memory())
"""


@pytest.mark.harden
@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ["nano-llama", "nano-nemotron"])
def test_convert_takes_the_memory_that_it_tells(name: str, outtype: str, tmp_path: Path) -> None:
    words = (sys.executable, "-c", MEASURE, EXAMPLES / name, tmp_path / "out.gguf", outtype)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    promised, taken = map(int, done.stdout.split())
    print(f"\nMEMORY {name} {outtype}: {taken} of {promised} bytes")  # noqa: T201
    assert taken <= promised


class Group:
    """A cgroup of this process's own, whose memory can be limited."""

    def __init__(self, folder: Path, limit: str) -> None:
        self._folder = folder
        self._limit = folder / limit

    def run(self, words: list[object], mebibytes: int) -> tuple[int, str]:
        """The exit code and stderr of a command whose resident memory is limited."""
        self._limit.write_text(str(mebibytes << 20))
        done = subprocess.run(
            [sys.executable, "-m", "minitron_cli", *map(str, words)],
            preexec_fn=lambda: (self._folder / "cgroup.procs").write_text(str(os.getpid())),
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stderr


@pytest.fixture
def group() -> Iterator[Group]:
    """A group below the one that this process is in, of either version of cgroups."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    ours = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    if "memory" in ours:
        parent, limit = Path(f"/sys/fs/cgroup/memory{ours['memory']}"), "memory.limit_in_bytes"
    else:
        parent, limit = Path(f"/sys/fs/cgroup{ours.get('', '')}"), "memory.max"
    folder = parent / f"minitron-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this process may make no cgroup")
    try:
        if not (folder / limit).exists():
            pytest.skip("the cgroup of this process does not hand on its memory controller")
        yield Group(folder, limit)
    finally:
        folder.rmdir()


# resident memory in MiB: the system itself kills what takes more, and nobody can say why
RESIDENT = (16, 24, 32, 40, 48, 64, 96, 128, 192, 384, 768)


@pytest.mark.harden
@pytest.mark.parametrize("name", ALL)
def test_every_command_in_a_group(
    name: str, whole: Callable[[str], Whole], material: Material, group: Group, tmp_path: Path
) -> None:
    expected = whole(name).files if name in COMMANDS else {}
    done = []
    for mebibytes in RESIDENT:
        folder = tmp_path / str(mebibytes)
        folder.mkdir()
        code, err = group.run([*workshop.words_of(name, material, folder), "-q"], mebibytes)
        done.append(code == DONE.get(name, 0))
        if not done[-1] and code != -signal.SIGKILL:
            fails(Ran(code, "", _LIBRARIES.sub("", err)), 6)
        if name in COMMANDS:
            assert workshop.results(folder).items() <= expected.items(), mebibytes
    assert done[-1]
    least = RESIDENT[done.index(True)]
    print(f"\nRESIDENT {name} {len(done)} {sum(done)} {least}")  # noqa: T201


@pytest.mark.harden
@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_what_convert_tells_suffices(outtype: str, group: Group, tmp_path: Path) -> None:
    source, out = EXAMPLES / "nano-nemotron", tmp_path / "out.gguf"
    told = convert(ConvertSettings(source, out, outtype=outtype, dry_run=True)).memory
    words = ["convert", source, "-o", out, "--outtype", outtype]
    code, err = group.run(words, told >> 20)
    assert code == 0 and out.exists(), err
