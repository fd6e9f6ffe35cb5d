"""Time `minitron imatrix` beside llama-imatrix, spared its perplexity and as it comes.

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
    """Calibration of every model that is named, with the least and with the usual of their work."""
    inputs = setup.inputs(EXAMPLES / "calibration.txt")
    kinds = (("", ["--no-ppl"]), (", theirs with a perplexity as by default", []))
    return [_case(setup, given, *kind) for given in inputs for kind in kinds]


def _case(setup: Setup, given: Input, kind: str, more: list[str]) -> Case:
    ours, theirs = setup.folder / "ours.imatrix.gguf", setup.folder / "theirs.imatrix.gguf"
    common = (given.model, *given.options, "--threads", setup.threads, "-o")
    return Case(
        name=f"{given.name}{kind}",
        ours=[setup.minitron("imatrix", *common, ours, "--force", "-q")],
        theirs=[setup.tool("llama-imatrix", "-m", *common, theirs, *more)],
    )


if __name__ == "__main__":
    sys.exit(main(PARSER, cases))
