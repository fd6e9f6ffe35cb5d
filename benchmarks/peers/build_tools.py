"""Build llama.cpp's programs for each instruction set, for record_tools.py.

    python benchmarks/peers/build_tools.py --source DIR --out DIR [--set avx2 …]

DIR of --source is llama.cpp 0c1e57098: `vendor/llama.cpp` inside the source distribution of
llama-cpp-python 0.3.36. DIR of --out gets a folder of programs for each set. The sets differ in one
library only, ggml's CPU kernels: everything else is compiled once.
"""

import argparse
import shutil
import sys
from pathlib import Path

from llama_tools import COMMIT

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
from portable import SETS, build

PROGRAMS = ("imatrix", "quantize", "perplexity", "completion", "tokenize", "bench")


OPTIONS = (
    "-DLLAMA_BUILD_SERVER=off -DLLAMA_BUILD_TESTS=off -DLLAMA_BUILD_EXAMPLES=off -DLLAMA_CURL=off"
    f" -DLLAMA_BUILD_NUMBER=1 -DLLAMA_BUILD_COMMIT={COMMIT[:7]}"
)


def main() -> int:
    """Build every requested set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="llama.cpp's source")
    parser.add_argument("--out", type=Path, required=True, help="where the programs go")
    parser.add_argument("--set", action="append", choices=SETS, help="only this one; repeatable")
    arguments = parser.parse_args()
    for instructions in arguments.set or SETS:
        work, target = arguments.out / "build", arguments.out / instructions
        programs = [f"llama-{program}" for program in PROGRAMS]
        build(arguments.source, work, instructions, *programs, more=OPTIONS)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(work / "bin", target, symlinks=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
