"""A copy of this environment whose kernels are compiled for an instruction set, for the tests.

    .venv/bin/python scripts/portable.py avx2

makes build/portable/avx2: this environment's packages, with ggml's CPU kernels (libggml-cpu) built
from the source distribution of the pinned llama-cpp-python. They are all that differs between
builds of it for one set and another.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "portable"
AVX2 = ("GGML_AVX", "GGML_AVX2", "GGML_FMA", "GGML_F16C", "GGML_BMI2")
SETS = {"avx512": (*AVX2, "GGML_AVX512"), "avx2": AVX2, "sse42": ()}
SHARED = (
    *("-DGGML_NATIVE=off", "-DBUILD_SHARED_LIBS=on", "-DCMAKE_BUILD_TYPE=Release"),
    *("-DCMAKE_BUILD_WITH_INSTALL_RPATH=on", "-DCMAKE_INSTALL_RPATH=$ORIGIN"),
)


def build(source: Path, work: Path, instructions: str, *targets: str, more: str = "") -> None:
    """Compile targets of llama.cpp for a set; what an earlier set left in `work` is used again."""
    # every switch, as CMake remembers those of the set before
    switches = {name: name in SETS[instructions] for name in SETS["avx512"]}
    options = [f"-D{name}={'on' if value else 'off'}" for name, value in switches.items()]
    command = ["cmake", "-S", source, "-B", work, *SHARED, *options, *more.split()]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    jobs = str(len(os.sched_getaffinity(0)))
    command = ["cmake", "--build", work, "--parallel", jobs, "--target", *targets]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    (instructions,) = sys.argv[1:]
    work = FOLDER / "cmake"
    build(_source() / "vendor" / "llama.cpp", work, instructions, "ggml-cpu")
    target = FOLDER / instructions
    shutil.rmtree(target, ignore_errors=True)
    venv.create(target, symlinks=True)
    ours = Path(sysconfig.get_path("purelib"))
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(target)}))
    shutil.copytree(ours, packages, copy_function=_link, dirs_exist_ok=True)
    kernels = list((packages / "llama_cpp" / "lib").glob("libggml-cpu.so*"))
    assert kernels, "llama-cpp-python is not built with shared libraries"
    for library in kernels:
        library.unlink()
        shutil.copy(work / "bin" / "libggml-cpu.so", library)


def _source() -> Path:
    """The unpacked source distribution of the pinned llama-cpp-python."""
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.search(r"^llama-cpp-python==(\S+) \\\n(?:.*\\\n)*.*\n", lock, re.MULTILINE)
    assert pinned is not None
    source = FOLDER / f"llama_cpp_python-{pinned[1]}"
    if not source.exists():
        words = ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        command = [sys.executable, "-m", "pip", "--quiet", *words, "--require-hashes"]
        command += ["-r", "/dev/stdin", "-d", str(FOLDER)]
        subprocess.run(command, input=pinned[0], text=True, check=True)
        with tarfile.open(f"{source}.tar.gz") as archive:
            archive.extractall(FOLDER, filter="data")
    return source


def _link(source: str, target: str) -> None:
    """Link a file instead of copying it, where the disk can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


if __name__ == "__main__":
    main()
