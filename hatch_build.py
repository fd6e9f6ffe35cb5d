"""Builds the encoders of quant/kernels with the compiler at hand, for wheels and editable installs.

With a compiler for x86-64 the wheel is one of this platform and holds the library; without, it is
a pure one, and ggml's encoders do the work. CXX and CXXFLAGS are honoured. MINITRON_NATIVE=0 leaves
the library out; MINITRON_NATIVE=1 makes a failure to build it an error. `python hatch_build.py`
builds it in place.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path("minitron_core/libminitron_kernels.so")
# a * b + c stays two roundings; no flag names an instruction set, each unit has its own
FLAGS = "-std=c++17 -O3 -ffp-contract=off -fno-math-errno -fPIC -fvisibility=hidden -Wno-psabi"


class BuildHook(BuildHookInterface[Any]):
    """Adds the compiled library to a wheel, or puts it beside the sources of an editable one."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See BuildHookInterface. version: editable or standard."""
        root = Path(self.root)
        if version == "editable":
            build(root, root / "src" / PACKAGE)
            return
        library = root / "build" / "kernels" / PACKAGE.name
        if build(root, library):
            build_data["force_include"][str(library)] = PACKAGE.as_posix()
            build_data["pure_python"] = False
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{tag}"


def build(root: Path, library: Path) -> bool:
    """Compile the library to `library`; False, and no file, where that cannot be done."""
    library.unlink(missing_ok=True)
    reason = _compile(root / "quant" / "kernels", library)
    if reason and os.environ.get("MINITRON_NATIVE") == "1":
        raise RuntimeError(f"the kernels were not built: {reason}")
    if reason:
        print(f"minitron: the kernels were not built ({reason}); ggml's are used", file=sys.stderr)
    return not reason


def _compile(sources: Path, library: Path) -> str:
    """Why the library could not be built; empty where it was."""
    if os.environ.get("MINITRON_NATIVE") == "0":
        return "MINITRON_NATIVE=0"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"there are none for {platform.machine()}"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        return f"there is no compiler {compiler[0]}"
    units = sorted(map(str, sources.glob("*.cpp")))
    library.parent.mkdir(parents=True, exist_ok=True)
    built = library.with_name(f"{library.name}.{os.getpid()}.partial")
    more = shlex.split(os.environ.get("CXXFLAGS", ""))
    command = [*compiler, *FLAGS.split(), *more, "-shared", *units, "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        built.unlink(missing_ok=True)
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        return (errors or ["the compiler failed"])[0]
    built.replace(library)
    return ""


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.exit(not build(here, here / "src" / PACKAGE))
