"""Time `minitron imatrix` beside llama-imatrix, which is spared its perplexity.

A model whose vocabulary is most of its work (C, T: a published Llama 3.1 config and tokenizer):

    python benchmarks/peers/make_checkpoint.py C T folder --layers 4 --hidden 512
    minitron convert folder -o vocabulary.gguf --outtype f16
    python benchmarks/imatrix.py --also vocabulary.gguf wiki.test.raw 24
"""

import sys

from harness import EXAMPLES, Case, Input, Setup, main, parser_for, text_options

PARSER = parser_for(__doc__)
text_options(PARSER)


def cases(setup: Setup) -> list[Case]:
    """Calibration of every model that is named."""
    return [_case(setup, given) for given in setup.inputs(EXAMPLES / "calibration.txt")]


def _case(setup: Setup, given: Input) -> Case:
    ours, theirs = setup.folder / "ours.imatrix.gguf", setup.folder / "theirs.imatrix.gguf"
    common = (given.model, *given.options, "--threads", setup.threads, "-o")
    return Case(
        name=given.name,
        ours=[setup.minitron("imatrix", *common, ours, "--force", "-q")],
        theirs=[setup.tool("llama-imatrix", "-m", *common, theirs, "--no-ppl")],
    )


if __name__ == "__main__":
    sys.exit(main(PARSER, cases))
