"""Time `minitron generate` beside llama-completion: greedy, from a short and a long prompt."""

import json
import re
import sys

from harness import EXAMPLES, Case, Setup, main, parser_for

PARSER = parser_for(__doc__)
PARSER.add_argument("--predict", type=int, default=256, help="tokens to generate")
PARSER.add_argument("--prompt-bytes", type=int, default=8000, help="of the long prompt's text")
SPEEDS = {"prompt tok/s": "prompt_tokens_per_second", "tok/s": "tokens_per_second"}
THEIR_SPEED = re.compile(r"(?:prompt eval|  eval) time .*?([\d.]+) tokens per second")


def cases(setup: Setup) -> list[Case]:
    """The same prompt, context and length on both sides."""
    model, long_prompt = setup.model(), setup.folder / "prompt.txt"
    text = (EXAMPLES / "held-out.txt").read_text(encoding="utf-8")
    long_prompt.write_text(text[: setup.arguments.prompt_bytes].strip(), encoding="utf-8")
    words = ("-n", setup.arguments.predict, "--temp", 0, "--threads", setup.threads)
    quiet = ("-no-cnv", "--no-display-prompt", "--no-escape")
    return [
        Case(
            name=f"{model.stem}, {name}",
            ours=[setup.minitron("generate", model, *ours, *words, "--ctx", 4096, "--json", "-q")],
            theirs=[
                setup.tool("llama-completion", "-m", model, *theirs, *words, "-c", 4096, *quiet)
            ],
            values=speeds_of,
        )
        for name, ours, theirs in (
            ("short prompt", ("The old house stood",), ("-p", "The old house stood")),
            ("long prompt", ("-f", long_prompt), ("-f", long_prompt)),
        )
    ]


def speeds_of(output: str) -> dict[str, float]:
    """Tokens per second of prompt and generation, from our JSON or from their timings."""
    if output.lstrip().startswith("{"):
        document = json.loads(output)
        return {name: float(document[key]) for name, key in SPEEDS.items()}
    found = [float(speed) for speed in THEIR_SPEED.findall(output)]
    return dict(zip(SPEEDS, found, strict=False))


if __name__ == "__main__":
    sys.exit(main(PARSER, cases))
