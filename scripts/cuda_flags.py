"""CMake options that build llama.cpp with CUDA on this machine: for `make install CUDA=1`.

nvcc is enough. A toolkit without cuBLAS gets pip's nvidia-cublas of the same version, in the
environment of the Python that runs this; without a driver's library, memory pools do without it.
CUDA_ARCH (90, native, "86;90") and FA=OFF (no flash attention kernels, much faster to build) are
read from the environment; the options are printed.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

# what is compiled for where there is no GPU to ask: 8.0 itself, and PTX for everything newer
_ANY_GPU = "80"


def main() -> None:
    if error := _cannot_link("int main() { return 0; }"):
        sys.exit(f"CUDA=1 needs a CUDA toolkit that works: {error}")
    options = ["-DGGML_CUDA=on", f"-DCMAKE_CUDA_ARCHITECTURES={_architectures()}"]
    if os.environ.get("FA", "").upper() == "OFF":
        options.append("-DGGML_CUDA_FA=off")
    if _cannot_link("#include <cuda.h>\nint main() { return cuInit(0); }", "cuda"):
        _say("no driver library to link with: built without virtual memory management")
        options.append("-DGGML_CUDA_NO_VMM=on")
    if _cannot_link("#include <cublas_v2.h>\nint main() { return cublasCreate(0); }", "cublas"):
        options += _cublas_of_pip()
    if folder := _runtime_folder():
        options.append(f"-DCMAKE_SHARED_LINKER_FLAGS=-Wl,-rpath,{folder}")
    print(shlex.join(options))


def _cannot_link(program: str, *libraries: str) -> str:
    """Nothing if nvcc makes a program of this; else what it said last."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text(program)
        command = ["nvcc", str(source), "-o", str(source.with_suffix(""))]
        try:
            tried = subprocess.run(
                [*command, *(f"-l{name}" for name in libraries)], capture_output=True, text=True
            )
        except OSError:
            return "nvcc is not on the PATH"
        return (tried.stderr.strip() or "nvcc failed") if tried.returncode else ""


def _architectures() -> str:
    if wanted := os.environ.get("CUDA_ARCH"):
        return wanted
    if Path("/dev/nvidiactl").exists():
        return "native"
    _say(f"no GPU here to build for: CUDA_ARCH={_ANY_GPU} (8.0 and newer); name yours for speed")
    return _ANY_GPU


def _runtime_folder() -> str:
    """Where nvcc links CUDA's own library from, to be found there at run time too."""
    printed = subprocess.run(["nvcc", "-v", "probe.cu"], capture_output=True, text=True).stderr
    folders = re.findall(r'"-L([^"]+)"', "".join(re.findall(r"LIBRARIES=.*", printed)))
    return next((str(Path(one).resolve()) for one in folders if Path(one).name != "stubs"), "")


def _cublas_of_pip() -> list[str]:
    """Install cuBLAS as a package and tell CMake where it is; the RPATH follows from that."""
    printed = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release (\d+)\.(\d+)", printed.stdout)
    if not release:
        sys.exit("nvcc --version names no release")
    major, minor = release.groups()
    package = "nvidia-cublas" if int(major) >= 13 else f"nvidia-cublas-cu{major}"
    _say(f"the toolkit has no cuBLAS: installing {package} {major}.{minor} (about 420 MB)")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", f"{package}=={major}.{minor}.*"]
    if subprocess.run(pip, stdout=sys.stderr).returncode:
        sys.exit(f"CUDA=1 needs cuBLAS, and {package} could not be installed")
    library = next(
        found
        for folder in importlib.util.find_spec("nvidia").submodule_search_locations
        for found in Path(folder).glob("**/libcublas.so.*")
    )
    plain = library.with_name("libcublas.so")  # the name that is linked, which the package lacks
    if not plain.exists():
        plain.symlink_to(library.name)
    include = library.parent.parent / "include"
    return [f"-DCMAKE_LIBRARY_PATH={library.parent}", f"-DCMAKE_CUDA_FLAGS=-I{include}"]


def _say(what: str) -> None:
    print(f"CUDA: {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
