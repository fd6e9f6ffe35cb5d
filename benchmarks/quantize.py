"""Time `minitron quantize` beside llama-quantize: single levels, and all 27 of them."""

import sys
from pathlib import Path

from harness import EXAMPLES, Case, Setup, main, parser_for, run_once

LEVELS = (
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "Q2_K", "IQ3_XXS"),
    *("IQ3_XS", "Q3_K_S", "IQ3_S", "IQ3_M", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_0", "IQ4_NL"),
    *("Q4_K_S", "Q4_K_M", "Q4_1", "Q5_K_S", "Q5_0", "Q5_K_M", "Q5_1", "Q6_K", "Q8_0"),
)
ALL = "all"
PARSER = parser_for(__doc__)
PARSER.add_argument("--level", action="append", help="repeat for several; all means the 27")
PARSER.add_argument("--imatrix", help="importance matrix (default: made of the calibration text)")


def cases(setup: Setup) -> list[Case]:
    """One case for each --level, with the same importance matrix on both sides."""
    model = setup.model()
    imatrix = setup.arguments.imatrix or made_imatrix(setup, model)
    return [
        quantize_case(setup, model, imatrix, level)
        for level in setup.arguments.level or ("Q4_K_M", "Q8_0", "IQ2_M", ALL)
    ]


def quantize_case(setup: Setup, model: Path, imatrix: Path, level: str) -> Case:
    """Our one command beside one llama-quantize for each level it stands for."""
    theirs = setup.folder / "theirs.gguf"
    words = ("-d", setup.folder, "--imatrix", imatrix, "--threads", setup.threads)
    return Case(
        name=f"{model.stem} {level}",
        ours=[setup.minitron("quantize", model, level, *words, "--force", "-q")],
        theirs=[
            setup.tool("llama-quantize", "--imatrix", imatrix, model, theirs, each, setup.threads)
            for each in (LEVELS if level == ALL else (level,))
        ],
    )


def made_imatrix(setup: Setup, model: Path) -> Path:
    """An importance matrix of the calibration text by llama-imatrix."""
    target = setup.folder / "imatrix.gguf"
    text = ("-f", EXAMPLES / "calibration.txt", "--no-ppl", "-t", setup.threads)
    run_once([setup.tool("llama-imatrix", "-m", model, *text, "-o", target)])
    return target


if __name__ == "__main__":
    sys.exit(main(PARSER, cases))
