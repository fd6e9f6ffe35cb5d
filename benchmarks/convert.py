"""Time `minitron convert` beside llama.cpp's convert_hf_to_gguf.py.

The converter as shipped does not know nano-llama's tokenizer, so the default is nano-nemotron.
"""

import os
import sys
from pathlib import Path

from harness import EXAMPLES, Case, NotGiven, Setup, main, parser_for

PARSER = parser_for(__doc__)
PARSER.add_argument("--source", default=EXAMPLES / "nano-nemotron", help="a checkpoint folder")
PARSER.add_argument("--outtype", action="append", help="repeat for several (default: f16, q8_0)")
PARSER.add_argument("--converter", metavar="FILE", default=os.environ.get("LLAMA_CPP_CONVERTER"))
PARSER.add_argument(
    "--converter-python", metavar="EXE", default=os.environ.get("LLAMA_CPP_CONVERTER_PYTHON")
)


def cases(setup: Setup) -> list[Case]:
    """One case for each outtype."""
    given = setup.arguments
    if not given.converter or not given.converter_python:
        raise NotGiven(
            "give convert_hf_to_gguf.py as --converter FILE (LLAMA_CPP_CONVERTER) and a Python "
            "with torch as --converter-python EXE (LLAMA_CPP_CONVERTER_PYTHON)"
        )
    theirs = (given.converter_python, given.converter, given.source)
    ours, them = setup.folder / "ours.gguf", setup.folder / "theirs.gguf"
    return [
        Case(
            name=f"{Path(given.source).name} {outtype}",
            ours=[
                setup.minitron(
                    "convert", given.source, "-o", ours, "--outtype", outtype, "--force", "-q"
                )
            ],
            theirs=[(*theirs, "--outfile", them, "--outtype", outtype)],
        )
        for outtype in given.outtype or ("f16", "q8_0")
    ]


if __name__ == "__main__":
    sys.exit(main(PARSER, cases))
