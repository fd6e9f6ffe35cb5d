"""Time `minitron generate` beside llama-completion and llama-bench: greedy, from several prompts.

The first token: what both commands take from their start until they have written one token.
Beside llama-bench: tokens per second of an answer, and of its test tg128, which samples nothing.
"""

import json
import re
import sys
from pathlib import Path

from harness import EXAMPLES, Case, Command, Setup, main, parser_for

PARSER = parser_for(__doc__)
PARSER.add_argument("--predict", type=int, default=256, help="tokens to generate")
PARSER.add_argument("--prompt-bytes", type=int, default=8000, help="of the long prompt's text")
SPEEDS = {"prompt tok/s": "prompt_tokens_per_second", "tok/s": "tokens_per_second"}
BENCH_SPEED = '"avg_ts"'
THEIR_SPEED = re.compile(r"(?:prompt eval|  eval) time .*?([\d.]+) tokens per second")


def cases(setup: Setup) -> list[Case]:
    """The same prompt, context and length on both sides."""
    model, long_prompt = setup.model(), setup.folder / "prompt.txt"
    text = (EXAMPLES / "held-out.txt").read_text(encoding="utf-8")
    long_prompt.write_text(text[: setup.arguments.prompt_bytes].strip(), encoding="utf-8")
    predict = setup.arguments.predict
    short = (("The old house stood",), ("-p", "The old house stood"))
    return [
        _beside_completion(setup, model, "first token", *short, 1),
        _beside_completion(setup, model, "short prompt", *short, predict),
        _beside_completion(
            setup, model, "long prompt", ("-f", long_prompt), ("-f", long_prompt), predict
        ),
        _beside_bench(setup, model),
    ]


def _beside_completion(
    setup: Setup, model: Path, name: str, ours: Command, theirs: Command, predict: int
) -> Case:
    words = ("-n", predict, "--temp", 0, "--threads", setup.threads)
    quiet = ("-no-cnv", "--no-display-prompt", "--no-escape")
    return Case(
        name=f"{model.stem}, {name}",
        ours=[setup.minitron("generate", model, *ours, *words, "--ctx", 4096, "--json", "-q")],
        theirs=[setup.tool("llama-completion", "-m", model, *theirs, *words, "-c", 4096, *quiet)],
        values=speeds_of if predict > 1 else lambda output: {},
    )


def _beside_bench(setup: Setup, model: Path) -> Case:
    words = ("--ignore-eos", "--temp", 0, "--threads", setup.threads, "--json", "-q")
    test = ("-p", 0, "-n", 128, "-r", 1, "-t", setup.threads, "-o", "json")
    return Case(
        name=f"{model.stem}, beside llama-bench",
        ours=[setup.minitron("generate", model, "The", "-n", 128, *words)],
        theirs=[setup.tool("llama-bench", "-m", model, *test)],
        values=speeds_of,
    )


def speeds_of(output: str) -> dict[str, float]:
    """Tokens per second of prompt and generation, from our JSON, their timings or their test."""
    if output.lstrip().startswith("{"):
        document = json.loads(output)
        return {name: float(document[key]) for name, key in SPEEDS.items()}
    if BENCH_SPEED in output:
        rows = json.loads(output[output.index("[\n") : output.rindex("]") + 1])
        return {"tok/s": rows[0]["avg_ts"]}
    found = [float(speed) for speed in THEIR_SPEED.findall(output)]
    return dict(zip(SPEEDS, found, strict=False))


if __name__ == "__main__":
    sys.exit(main(PARSER, cases))
