"""A disk that is full from some write on, at every stage of every command that writes.

A small library before the C library (full.c) counts the writes below a folder and refuses those
from the n-th on: SQLite's and llama.cpp's as well as ours, at the same places every time.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hardening import workshop
from hardening.workshop import COMMANDS, Material

SOURCE = Path(__file__).with_name("full.c")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    path = tmp_path_factory.mktemp("full") / "full.so"
    words = (compiler, "-shared", "-fPIC", "-O1", "-o", path, SOURCE, "-ldl")
    subprocess.run(words, check=True)
    return path


class Disk:
    """A folder whose disk takes so many writes."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.folder, self._count = folder.resolve(), folder.with_suffix(".count")
        self._environment = {
            "LD_PRELOAD": str(library),
            "FULL_UNDER": str(self.folder),
            "FULL_COUNT": str(self._count),
        }
        self.folder.mkdir()

    def run(self, words: list[object], after: int | None = None) -> tuple[int, str]:
        """The exit code and stderr of a command; `after` so many writes the disk is full."""
        self._count.write_text("")
        limit = {} if after is None else {"FULL_AFTER": str(after)}
        process = workshop.start(words, **self._environment, **limit)
        _, err = process.communicate(timeout=300)
        return process.returncode, err

    @property
    def writes(self) -> int:
        """How many there were."""
        return self._count.stat().st_size


def fill_up(library: Path, name: str, n: int, whole: Any, material: Material, path: Path) -> None:
    """A command whose disk is full after n writes; then there is room, and it goes on."""
    command, expected = COMMANDS[name], whole(name)
    disk = Disk(library, path / "job")
    words = command.words(material, disk.folder)
    code, err = disk.run(words, n)
    assert code == 6, (n, code, err)
    assert "full" in err and err.startswith("error: ") and err.count("\n") == 2, (n, err)
    assert workshop.results(disk.folder).items() <= expected.files.items(), n
    answer = workshop.finish([*words, *command.resume])
    assert workshop.results(disk.folder) == expected.files, n
    assert workshop.leftovers(disk.folder) == set(), n
    if command.answers:
        assert answer == expected.answer, n


@pytest.mark.parametrize("n", [7])
def test_quantize_on_a_full_disk(
    n: int, library: Path, whole: Any, material: Material, tmp_path: Path
) -> None:
    fill_up(library, "quantize", n, whole, material, tmp_path)


@pytest.mark.harden
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_on_a_full_disk(
    name: str, library: Path, whole: Any, material: Material, tmp_path: Path
) -> None:
    whole(name)  # makes what a command needs first
    disk = Disk(library, tmp_path / "count")
    assert disk.run(COMMANDS[name].words(material, disk.folder))[0] == 0
    writes = disk.writes
    assert writes > 0
    # every one of the last, where files get their names; some of the many before
    step = max(1, writes // 8)
    for n in sorted({*range(0, writes, step), *range(max(0, writes - 6), writes)}):
        place = tmp_path / str(n)
        place.mkdir()
        fill_up(library, name, n, whole, material, place)
        print(f"\nFULL {name} after {n} of {writes} writes")  # noqa: T201
        shutil.rmtree(place)
