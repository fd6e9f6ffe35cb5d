"""Time `minitron imatrix` beside llama-imatrix, which is spared its perplexity.

A model whose vocabulary is most of its work (C, T: a published Llama 3.1 config and tokenizer):

    python benchmarks/peers/make_checkpoint.py C T folder --layers 4 --hidden 512
    minitron convert folder -o vocabulary.gguf --outtype f16
    python benchmarks/imatrix.py --model vocabulary.gguf --text wiki.test.raw --chunks 24
"""

import sys

from harness import EXAMPLES, Case, Setup, main, parser_for

PARSER = parser_for(__doc__)
PARSER.add_argument("--text", default=EXAMPLES / "calibration.txt")
PARSER.add_argument("--chunks", type=int, default=-1, help="chunks of 512 tokens (default: all)")


def cases(setup: Setup) -> list[Case]:
    """One case: the whole text, or --chunks of it."""
    given, model = setup.arguments, setup.model()
    chunks = ("--chunks", given.chunks) if given.chunks > 0 else ()
    ours, theirs = setup.folder / "ours.imatrix.gguf", setup.folder / "theirs.imatrix.gguf"
    common = ("-f", given.text, *chunks, "--threads", setup.threads)
    return [
        Case(
            name=f"{model.stem}, {given.chunks if chunks else 'all'} chunks",
            ours=[setup.minitron("imatrix", model, *common, "-o", ours, "--force", "-q")],
            theirs=[setup.tool("llama-imatrix", "-m", model, *common, "-o", theirs, "--no-ppl")],
        )
    ]


if __name__ == "__main__":
    sys.exit(main(PARSER, cases))
