"""Compare the speeds that `minitron bench` and llama-bench measure of the same model.

The speeds must agree: what differs is what Python adds to every decode.
"""

import json
import sys

from harness import Case, Setup, main, parser_for

PARSER = parser_for(__doc__)
PARSER.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
PARSER.add_argument("--predict", type=int, default=128, help="tokens to generate")
PARSER.add_argument("--repetitions", type=int, default=5, help="of each test in a run")


def cases(setup: Setup) -> list[Case]:
    """The same tests on both sides."""
    model, chosen = setup.model(), setup.arguments
    words = ("-p", chosen.prompt, "-n", chosen.predict, "-r", chosen.repetitions)
    threads = ("-t", setup.threads)
    return [
        Case(
            name=model.stem,
            ours=[setup.minitron("bench", model, *words, *threads, "--json", "-q")],
            theirs=[setup.tool("llama-bench", "-m", model, *words, *threads, "-o", "json")],
            values=speeds_of,
        )
    ]


def speeds_of(output: str) -> dict[str, float]:
    """Tokens per second of prompt processing and generation: both write the same fields."""
    rows = json.loads(output[output.index("[\n") : output.rindex("]") + 1])
    return {
        f"{'tg' if row['n_gen'] else 'pp'}{row['n_prompt'] + row['n_gen']} tok/s": row["avg_ts"]
        for row in rows
    }


if __name__ == "__main__":
    sys.exit(main(PARSER, cases))
