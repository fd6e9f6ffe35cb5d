"""Time decodes with llama.cpp's work memory on a cache line and 16 bytes past one.

Two contexts of one model in one process, in turn on the same chunks: what differs is only where
malloc put the work memory. llama.cpp's programs have it wherever their other blocks leave it.

    python benchmarks/work_memory.py nano-llama-F16.gguf examples/calibration.txt --rounds 40
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from harness import machine

from minitron_engine.generation.sequence import Sequence
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings, chunk_text, decode_chunks, read_text

PARSER = argparse.ArgumentParser(description=__doc__.splitlines()[0])
PARSER.add_argument("model", type=Path)
PARSER.add_argument("text", type=Path)
PARSER.add_argument("--rounds", type=int, default=40, help="times that both decode")
PARSER.add_argument("--threads", type=int, default=2)
PROMPT = 2048  # tokens


def in_pairs(
    model: Model, settings: ContextSettings, decode: Callable[[Context], object], rounds: int
) -> str:
    """Medians of a decode in two contexts, in turn, and the quartiles of their ratio."""

    def seconds(context: Context) -> float:
        started = time.perf_counter()
        decode(context)
        return time.perf_counter() - started

    with open_context(model, settings) as on_line, open_context(model, settings) as past_line:
        past_line.work_alignment.past = 16
        seconds(on_line), seconds(past_line)
        pairs = [(seconds(on_line), seconds(past_line)) for _ in range(rounds)]
    on, past = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    return f"{on:.0f} | {past:.0f} | {middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Print medians and the paired ratio as Markdown."""
    given = PARSER.parse_args()
    chunks = ChunkSettings(limit=4, threads=given.threads)
    prompt = ContextSettings(n_ctx=PROMPT, n_batch=PROMPT, threads=given.threads)
    text = read_text(given.text)
    print("\n".join(["# work_memory", "", *(f"- {k}: {v}" for k, v in machine().items()), ""]))
    print(f"{given.model.stem}, {given.rounds} rounds:\n")
    print("| | on a cache line ms | 16 bytes past one ms | ratio in pairs (quartiles) |")
    print("|---|---:|---:|---:|")
    with open_model(ModelSettings(given.model)) as model:
        tokens = chunk_text(model, text, chunks, given.text.name)
        first = model.tokenize(text, add_special=True, parse_special=False)[:PROMPT].tolist()

        def perplexity(context: Context) -> None:
            for _ in decode_chunks(context, tokens, chunks, chunks.first_output):
                pass

        row = in_pairs(model, chunks.context(), perplexity, given.rounds)
        print(f"| four chunks of 512 tokens | {row} |", flush=True)
        row = in_pairs(model, prompt, lambda c: Sequence(c).append(first), given.rounds)
        print(f"| a prompt of {PROMPT:,} tokens | {row} |")


if __name__ == "__main__":
    main()
