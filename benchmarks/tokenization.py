"""Stack and processor time that llama.cpp's pre-tokenizers take for long runs of one character.

    python benchmarks/tokenization.py [PRE_TOKENIZER…] [--length 100000]

Writes results/tokenization.md. Every run of tests/helpers/pretokenizers.py is tokenized in a thread
with a fresh stack of 1 GiB; the stack taken is what of it lies in memory afterwards.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness import machine

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "tests")  # benchmarks/convert.py is not what `convert` means there

from helpers.pretokenizers import ENDS, PRE_TOKENIZERS, RUNS, with_pre_tokenizer  # noqa: E402
from minitron_convert.convert import ConvertSettings, convert  # noqa: E402
from minitron_core.errors import MinitronError  # noqa: E402
from minitron_engine.llama import tokenization  # noqa: E402
from minitron_engine.llama.settings import ModelSettings  # noqa: E402
from minitron_engine.loading import open_model  # noqa: E402

REPORT = ROOT / "benchmarks" / "results" / "tokenization.md"
STACK = 1 << 30
FLAT = 20  # bytes of stack for a character below which nothing recurses
SHORT = 4000  # length of what takes time that grows with the square
LIBC = ctypes.CDLL(None)
PR_SET_THP_DISABLE = 41
HEAD = """# Stack and time of the pre-tokenizers

Made by `python benchmarks/tokenization.py`: {runs} runs of {length} characters of one kind
(`tests/helpers/pretokenizers.py`), each with {ends} ends, for every pre-tokenizer of the pinned
llama.cpp, in the vocabulary of nano-llama. *Stack* is what the deepest run takes for each of its
characters, *recursing* how many of the runs take any; where it says none, llama.cpp has code of its
own instead of a std::regex. *Slowest* is the processor's time for a character, with everything that
comes after the pre-tokenizer.

A match is tokenized on a stack of 1,024 bytes for each of its *bytes*: three times what the deepest
takes for characters of one byte, and more for others. A thread's usual 8 MiB end after
26,000 characters.

*Refused* runs take time that grows with the square of their length, and are refused above 10,000
characters. `superbpe` looks ahead from every digit to the last one, `(?=(\\d{{3}})+(?!\\d))`;
`deepseek-llm` looks from every blank for the end of the line, `\\s+$`, and finds it at the first
unless something follows that no earlier expression has cut off. `whitespace` is meant for
vocabularies that drop blanks: in one of GPT-2's kind llama.cpp aborts on them, so that text with
blanks is refused at any length.

| pre-tokenizer | stack, bytes | recursing | slowest, ns | refused |
|---|---:|---:|---:|---|"""
PARSER = argparse.ArgumentParser(description=__doc__.splitlines()[0])
PARSER.add_argument("names", nargs="*", default=PRE_TOKENIZERS, metavar="PRE_TOKENIZER")
PARSER.add_argument("--length", type=int, default=100_000, help="characters of a run")


@dataclass(frozen=True)
class Measured:
    """A run with what follows it: stack and time for each of its characters."""

    name: str
    stack_bytes: float
    nanoseconds: float
    refused: bool


def stack_taken(call: Callable[[], object]) -> tuple[int, float] | None:
    """Bytes of stack and seconds of processor time of a call in a thread; None where it refuses."""
    results: list[tuple[int, float]] = []

    def measured() -> None:
        low, high = own_stack()
        started = time.thread_time()
        with suppress(MinitronError):
            call()
            seconds = time.thread_time() - started
            results.append((resident(low, high), seconds))

    usual = threading.stack_size(STACK)
    thread = threading.Thread(target=measured)
    thread.start()
    threading.stack_size(usual)
    thread.join()
    return results[0] if results else None


def own_stack() -> tuple[int, int]:
    """Where this thread's stack begins and ends."""
    attributes = ctypes.create_string_buffer(64)
    LIBC.pthread_self.restype = ctypes.c_void_p
    address, size = ctypes.c_void_p(), ctypes.c_size_t()
    LIBC.pthread_getattr_np(ctypes.c_void_p(LIBC.pthread_self()), attributes)
    LIBC.pthread_attr_getstack(attributes, ctypes.byref(address), ctypes.byref(size))
    assert address.value is not None
    return address.value, address.value + size.value


def resident(low: int, high: int) -> int:
    """Bytes between two addresses that are in memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin < high and low < end
        elif inside and first == "Rss:":
            total += int(rest[0]) << 10
    return total


def measure(model: Path, length: int) -> Iterator[Measured]:
    """Every run with every end; a short one of what is refused at this length."""
    with open_model(ModelSettings(model, vocab_only=True)) as loaded:

        def of(period: str, end: str, size: int) -> tuple[int, float] | None:
            text = f"A\n{period * (size // len(period))}{end}"
            return stack_taken(lambda: loaded.tokenize(text, add_special=True, parse_special=True))

        for name, period in RUNS.items():
            for end in ENDS:
                taken, size = of(period, end, length), length
                if taken is None:
                    taken, size = of(period, end, SHORT), SHORT
                if taken is not None:
                    refused = size < length
                    yield Measured(name, taken[0] / size, taken[1] / size * 1e9, refused)


def row(pre_tokenizer: str, runs: Sequence[Measured]) -> str:
    """A pre-tokenizer's line of the table."""
    deepest = max(runs, key=lambda run: run.stack_bytes)
    slowest = max((run for run in runs if not run.refused), key=lambda run: run.nanoseconds)
    stack = f"{deepest.stack_bytes:.0f}" if deepest.stack_bytes > FLAT else "none"
    recursing = sum(run.stack_bytes > FLAT for run in runs)
    refused = ", ".join(sorted({run.name for run in runs if run.refused}))
    cells = (
        pre_tokenizer,
        stack,
        f"{recursing} of {len(runs)}",
        f"{slowest.nanoseconds:,.0f} ({slowest.name})",
        refused,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and write the page."""
    given = PARSER.parse_args()
    LIBC.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # huge pages would round the stack up
    tokenization._SHORT_MATCH = sys.maxsize  # no second thread with a stack of its own
    facts = "\n".join(f"- {name}: {value}" for name, value in machine().items())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain.gguf")
        convert(ConvertSettings(ROOT / "examples" / "nano-llama", plain, vocab_only=True))
        for name in given.names:
            model = with_pre_tokenizer(plain, Path(folder, f"{name}.gguf"), name)
            rows.append(row(name, list(measure(model, given.length))))
            print(rows[-1], flush=True)
    head = HEAD.format(length=f"{given.length:,}", runs=len(RUNS), ends=len(ENDS))
    REPORT.write_text("\n".join([head, *rows, "", facts, ""]))


if __name__ == "__main__":
    main()
