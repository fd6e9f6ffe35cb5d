"""The wheel: complete, and able to run outside the tree."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers.kernels import SOURCES, built_library

ROOT = Path(__file__).parents[1]
LIBRARY = "minitron_core/libminitron_kernels.so"
# compiling takes seconds, and what it gives is there: a compiler that is given every source
COMPILER = """#!/bin/sh
set -e
for source in {sources}; do
  case " $* " in *" $source "*) ;; *) exit 1 ;; esac
done
for target; do :; done
cp {library} "$target"
"""


def build(target: str, folder: Path, **environment: str) -> Path:
    """The wheel or sdist of the tree."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    chosen = {**os.environ, **environment}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=chosen)
    (built,) = folder.iterdir()
    return built


def compiles() -> bool:
    return shutil.which("c++") is not None and platform.machine() == "x86_64"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not compiles():
        return build("wheel", tmp_path_factory.mktemp("wheel"))
    compiler = tmp_path_factory.mktemp("compiler") / "c++"
    sources = " ".join(shlex.quote(str(path)) for path in SOURCES.glob("*.cpp"))
    library = shlex.quote(str(built_library().path))
    compiler.write_text(COMPILER.format(sources=sources, library=library))
    compiler.chmod(0o755)
    named = shlex.quote(str(compiler))
    return build("wheel", tmp_path_factory.mktemp("wheel"), CXX=named, MINITRON_NATIVE="1")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S leaves out the editable installation; only the dependencies are taken from it
    code = (
        f"import sys; sys.path[:0] = [{str(installed)!r}]; "
        f"sys.path.append({sysconfig.get_path('purelib')!r}); "
        "from minitron_cli.main import main; main()"
    )
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_every_module_is_in_the_wheel(installed: Path) -> None:
    for root in ("src", "convert", "quant"):
        # the stub of the Python API says where its names live
        for path in (*(ROOT / root).rglob("*.py"), *(ROOT / root).rglob("*.pyi")):
            assert (installed / path.relative_to(ROOT / root)).is_file()


def test_the_wheel_runs_outside_the_tree(installed: Path, nano_llama: Path, tmp_path: Path) -> None:
    version = run(installed, tmp_path, "--version")
    assert version.returncode == 0 and version.stdout.startswith("minitron ")
    ran = run(installed, tmp_path, "quantize", str(nano_llama), "Q4_0", "-d", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "nano-llama-Q4_0.gguf").is_file()


def test_a_wheel_with_kernels_is_one_of_the_platform(wheel: Path, installed: Path) -> None:
    system = sysconfig.get_platform().replace("-", "_")
    assert wheel.name.endswith(f"-py3-none-{system if compiles() else 'any'}.whl")
    assert (installed / LIBRARY).is_file() == compiles()
    if compiles():
        assert (installed / LIBRARY).read_bytes() == built_library().path.read_bytes()


def test_a_wheel_without_a_compiler_is_pure(tmp_path: Path) -> None:
    wheel = build("wheel", tmp_path, CXX="no-such-compiler")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        (metadata,) = (name for name in archive.namelist() if name.endswith("/WHEEL"))
        assert b"Root-Is-Purelib: true" in archive.read(metadata)


def test_the_sdist_brings_what_builds_the_kernels(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    sources = (
        path for path in (ROOT / "quant" / "kernels").iterdir() if path.suffix in (".h", ".cpp")
    )
    assert {"hatch_build.py", *(str(path.relative_to(ROOT)) for path in sources)} <= inside
    assert not [name for name in inside if name.endswith(".so")]
