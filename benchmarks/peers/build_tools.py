"""Build llama.cpp's programs for each instruction set, for record_tools.py.

    python benchmarks/peers/build_tools.py --source DIR --out DIR [--set avx2 …]

DIR of --source is llama.cpp 0c1e57098: `vendor/llama.cpp` inside the source distribution of
llama-cpp-python 0.3.36. DIR of --out gets a folder of programs for each set. The sets differ in one
library only, ggml's CPU kernels: everything else is compiled once.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from llama_tools import COMMIT

PROGRAMS = ("imatrix", "quantize", "perplexity", "completion", "tokenize")
# CMake's options besides GGML_NATIVE=off, which alone means AVX2, FMA, F16C and BMI2;
# `make test-portable` builds llama-cpp-python with the same ones
SETS = {
    "avx512": ("GGML_AVX512=on",),
    "avx2": (),
    "sse42": ("GGML_AVX=off", "GGML_AVX2=off", "GGML_FMA=off", "GGML_F16C=off", "GGML_BMI2=off"),
}
SWITCHES = ("AVX512", "AVX", "AVX2", "FMA", "F16C", "BMI2")


def build(source: Path, work: Path, instructions: str) -> None:
    """Compile the programs into work/bin; what an earlier set compiled is used again."""
    settings = [
        *("GGML_NATIVE=off", "BUILD_SHARED_LIBS=on", "CMAKE_BUILD_TYPE=Release"),
        *("CMAKE_BUILD_WITH_INSTALL_RPATH=on", "CMAKE_INSTALL_RPATH=$ORIGIN"),
        *("LLAMA_BUILD_SERVER=off", "LLAMA_BUILD_TESTS=off", "LLAMA_BUILD_EXAMPLES=off"),
        *("LLAMA_CURL=off", "LLAMA_BUILD_NUMBER=1", f"LLAMA_BUILD_COMMIT={COMMIT[:7]}"),
        # the set before this one is in CMake's cache
        *(f"GGML_{switch}={'off' if switch == 'AVX512' else 'on'}" for switch in SWITCHES),
        *SETS[instructions],
    ]
    configure = ["cmake", "-S", source, "-B", work, *(f"-D{setting}" for setting in settings)]
    targets = [f"llama-{program}" for program in PROGRAMS]
    jobs = str(len(os.sched_getaffinity(0)))
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", work, "--parallel", jobs, "--target", *targets], check=True)


def main() -> int:
    """Build every set that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="llama.cpp's source")
    parser.add_argument("--out", type=Path, required=True, help="where the programs go")
    parser.add_argument("--set", action="append", choices=SETS, help="only this one; repeatable")
    arguments = parser.parse_args()
    for instructions in arguments.set or SETS:
        build(arguments.source, arguments.out / "build", instructions)
        target = arguments.out / instructions
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(arguments.out / "build" / "bin", target, symlinks=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
