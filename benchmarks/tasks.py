"""Time `minitron tasks` beside llama-perplexity on HellaSwag: as it comes, and in its best setting.

llama-perplexity takes one question to a decode unless it is given more sequences: here 16, four
questions. It keeps logits for its whole cache, 512 tokens a sequence, so that many more do not fit
into memory with a large vocabulary.
"""

import json
import re
import sys
from pathlib import Path

from harness import EXAMPLES, Case, Setup, main, parser_for

PARSER = parser_for(__doc__)
PARSER.add_argument(
    "--data", type=Path, default=EXAMPLES.parent / "tests" / "data" / "llama_cpp" / "hellaswag.txt"
)
PARSER.add_argument("--limit", type=int, default=400, help="questions (default: 400)")


def cases(setup: Setup) -> list[Case]:
    """HellaSwag with llama-perplexity's own number of sequences, and with many."""
    given, model = setup.arguments, setup.model()
    limit, threads = ("--limit", given.limit), ("--threads", setup.threads)
    ours = setup.minitron("tasks", model, "--task", "hellaswag", "--data", given.data, *limit)
    theirs = setup.tool("llama-perplexity", "-m", model, "--hellaswag", "-f", given.data)
    theirs = [*theirs, "--hellaswag-tasks", given.limit, *threads]
    return [
        Case(
            name=f"{model.stem} HellaSwag{name}",
            ours=[[*ours, *threads, "--json", "-q"]],
            theirs=[[*theirs, *options]],
            values=score_of,
        )
        for name, options in (("", ()), (", -np 16", ("-np", 16)))
    ]


def score_of(output: str) -> dict[str, float]:
    """The share of right answers in percent."""
    if output.lstrip().startswith("{"):
        return {"score": float(json.loads(output)["rows"][-1]["score_pct"])}
    printed = re.findall(r"^\d+\t([\d.]+)%", output, re.MULTILINE)
    return {"score": float(printed[-1])} if printed else {}


if __name__ == "__main__":
    sys.exit(main(PARSER, cases))
