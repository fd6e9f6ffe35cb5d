"""Time `minitron ppl` beside llama-perplexity: perplexity alone, and divergence of Q4_K_M."""

import json
import re
import sys

from harness import EXAMPLES, Case, Setup, main, parser_for, run_once

PARSER = parser_for(__doc__)
PARSER.add_argument("--text", default=EXAMPLES / "held-out.txt")
PARSER.add_argument("--chunks", type=int, default=-1, help="chunks of 512 tokens (default: all)")
THEIR_PPL = re.compile(r"(?:Final estimate: PPL = |Mean PPL\(Q\) +: +)([\d.]+)")
THEIR_KLD = re.compile(r"Mean +KLD: +([\d.]+)")


def cases(setup: Setup) -> list[Case]:
    """Perplexity of the model, and of its Q4_K_M with the divergence from the model."""
    given, model = setup.arguments, setup.model()
    chunks = ("--chunks", given.chunks) if given.chunks > 0 else ()
    common = ("-f", given.text, *chunks, "--threads", setup.threads)
    q4_k_m, logits = setup.folder / "Q4_K_M.gguf", setup.folder / "logits"
    run_once([setup.tool("llama-quantize", model, q4_k_m, "Q4_K_M", setup.threads)])
    base = ("--kl-divergence-base", logits)
    return [
        Case(
            name=f"{model.stem} perplexity",
            ours=[setup.minitron("ppl", model, *common, "--json", "-q")],
            theirs=[setup.tool("llama-perplexity", "-m", model, *common)],
            values=values_of,
        ),
        Case(
            name=f"{model.stem} Q4_K_M divergence",
            ours=[setup.minitron("ppl", q4_k_m, "--reference", model, *common, "--json", "-q")],
            theirs=[
                setup.tool("llama-perplexity", "-m", model, *common, *base),
                setup.tool("llama-perplexity", "-m", q4_k_m, *common, *base, "--kl-divergence"),
            ],
            values=values_of,
        ),
    ]


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
