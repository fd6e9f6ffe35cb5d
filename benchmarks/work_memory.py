"""Time decodes with llama.cpp's work memory on a cache line and 16 bytes past one.

Two contexts of one model in one process, in turn on the same chunks: what differs is only where
malloc put the work memory. llama.cpp's programs have it wherever their other blocks leave it.

    python benchmarks/work_memory.py nano-llama-F16.gguf examples/calibration.txt --rounds 40
"""

import argparse
import statistics
import time
from pathlib import Path

from harness import machine

from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_engine.process.malloc_alignment import aligning_hook
from minitron_quant.chunking import ChunkSettings, chunk_text, decode_chunks, read_text

PARSER = argparse.ArgumentParser(description=__doc__.splitlines()[0])
PARSER.add_argument("model", type=Path)
PARSER.add_argument("text", type=Path)
PARSER.add_argument("--rounds", type=int, default=40, help="times that both decode four chunks")
PARSER.add_argument("--threads", type=int, default=2)


def main() -> None:
    """Print medians and the paired ratio as Markdown."""
    given = PARSER.parse_args()
    settings = ChunkSettings(limit=4, threads=given.threads)
    with open_model(ModelSettings(given.model)) as model:
        tokens = chunk_text(model, read_text(given.text), settings, given.text.name)

        def seconds(context: Context) -> float:
            started = time.perf_counter()
            for _ in decode_chunks(context, tokens, settings, settings.first_output):
                pass
            return time.perf_counter() - started

        hooks = [aligning_hook(past) for past in (0, 16)]
        with (
            open_context(model, settings.context(), hooks[0]) as on_line,
            open_context(model, settings.context(), hooks[1]) as past_line,
        ):
            seconds(on_line), seconds(past_line)
            pairs = [(seconds(on_line), seconds(past_line)) for _ in range(given.rounds)]
    print("\n".join(["# work_memory", "", *(f"- {k}: {v}" for k, v in machine().items()), ""]))
    on, past = (statistics.median(side) for side in zip(*pairs, strict=True))
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    print(f"- {given.model.stem}, four chunks of 512 tokens, {given.rounds} rounds")
    print(f"- on a cache line {on * 1e3:.0f} ms, 16 bytes past one {past * 1e3:.0f} ms")
    print(f"- ratio in pairs: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}")


if __name__ == "__main__":
    main()
