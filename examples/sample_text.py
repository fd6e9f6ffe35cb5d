"""How calibration.txt and held-out.txt came to be: sampled from nano-llama itself.

    minitron convert examples/nano-llama --outtype f16 -o nano-llama-F16.gguf
    python examples/sample_text.py nano-llama-F16.gguf --seed 1 > examples/calibration.txt
    python examples/sample_text.py nano-llama-F16.gguf --seed 2 > examples/held-out.txt

Temperature 1 and no truncation (no top-k, top-p or min-p), so the text has the model's own
distribution. Each passage starts from nothing but the BOS token and has up to 500 tokens; the
seed of passage n is 1,000,000 × seed + n. Passages that are not UTF-8 are left out.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from minitron_engine.generation.generate import generate, prompt_tokens
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.steps import GenerationSettings
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model

PASSAGE_TOKENS = 500


def passages(context: Context, seed: int) -> Iterator[str]:
    """Sampled passages without end, each from its own seed."""
    number = 0
    while True:
        sampling = SamplingSettings(
            seed=1_000_000 * seed + number, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0
        )
        context.clear()
        tokens = prompt_tokens(context.model, "")
        settings = GenerationSettings(sampling, n_predict=PASSAGE_TOKENS)
        text = "".join(step.text for step in generate(context, tokens, settings)).strip()
        number += 1
        if text and "\ufffd" not in text:
            yield text


def main() -> None:
    """Write passages to stdout until there are enough bytes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--bytes", type=int, default=160_000)
    arguments = parser.parse_args()
    written = 0
    with (
        open_model(ModelSettings(arguments.model, gpu_layers=0)) as model,
        open_context(model, ContextSettings(n_ctx=512, n_batch=512)) as context,
    ):
        for text in passages(context, arguments.seed):
            written += sys.stdout.write(text + "\n\n")
            if written >= arguments.bytes:
                return


if __name__ == "__main__":
    main()
