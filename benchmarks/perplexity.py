"""Time `minitron ppl` beside llama-perplexity: perplexity alone, and a table of levels."""

import json
import re
import sys
from pathlib import Path

from harness import EXAMPLES, Case, Input, Setup, main, parser_for, run_once, text_options

PARSER = parser_for(__doc__)
text_options(PARSER)
PARSER.add_argument("--levels", nargs="+", default=["Q4_K_M"], help="levels, or `all` (27)")
PARSER.add_argument("--table-runs", type=int, metavar="N", help="runs of tables (default: --runs)")
THEIR_PPL = re.compile(r"(?:Final estimate: PPL = |Mean PPL\(Q\) +: +)([\d.]+)")
THEIR_KLD = re.compile(r"Mean +KLD: +([\d.]+)")


def cases(setup: Setup) -> list[Case]:
    """Of every model that is named its perplexity, and levels of it with the divergence from it."""
    inputs = setup.inputs(EXAMPLES / "held-out.txt")
    return [case for given in inputs for case in _cases(setup, given)]


def _cases(setup: Setup, given: Input) -> list[Case]:
    model, common = given.model, (*given.options, "--threads", setup.threads)
    levels = quantized(setup, model)
    base = ("--kl-divergence-base", setup.folder / "logits")
    return [
        Case(
            name=f"{given.name}: perplexity",
            ours=[setup.minitron("ppl", model, *common, "--json", "-q")],
            theirs=[setup.tool("llama-perplexity", "-m", model, *common)],
            values=values_of,
        ),
        Case(
            name=f"{given.name}: table of {len(levels) + 1} with divergence",
            ours=[setup.minitron("ppl", *levels, "--reference", model, *common, "--json", "-q")],
            theirs=[
                setup.tool("llama-perplexity", "-m", model, *common, *base),
                *(
                    setup.tool("llama-perplexity", "-m", level, *common, *base, "--kl-divergence")
                    for level in levels
                ),
            ],
            values=values_of,
            runs=setup.arguments.table_runs,
        ),
    ]


def quantized(setup: Setup, model: Path) -> list[Path]:
    """The files in the folder MODEL.levels, or else the levels that --levels names, made here."""
    made = model.with_suffix(".levels")
    if made.is_dir():
        return sorted(made.glob("*.gguf"))
    folder, imatrix = setup.folder / made.name, setup.folder / f"{model.stem}.imatrix.gguf"
    text = ("-f", EXAMPLES / "calibration.txt", "--chunks", 4)
    run_once([setup.minitron("imatrix", model, *text, "-o", imatrix, "-q")])
    levels = setup.arguments.levels
    options = ("--imatrix", imatrix, "-d", folder, "-q")
    run_once([setup.minitron("quantize", model, *levels, *options)])
    return sorted(folder.glob("*.gguf"))


def values_of(output: str) -> dict[str, float]:
    """The last model's perplexity and divergence, from our JSON or from what theirs printed.

    llama-perplexity now and then leaves without its last lines; then a value is left out.
    """
    if output.lstrip().startswith("{"):
        row = json.loads(output)["rows"][-1]
        found = {"ppl": row["ppl"], "kld": row.get("kld_mean")}
        return {key: float(value) for key, value in found.items() if value is not None}
    printed = {"ppl": THEIR_PPL.findall(output), "kld": THEIR_KLD.findall(output)}
    return {key: float(values[-1]) for key, values in printed.items() if values}


if __name__ == "__main__":
    sys.exit(main(PARSER, cases))
