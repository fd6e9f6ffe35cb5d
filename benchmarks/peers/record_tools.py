"""Record what llama.cpp's own programs answer on the examples, for the tests to compare with.

    python benchmarks/peers/record_tools.py --set avx512 --tools DIR --models DIR \
        --out tests/data/llama_cpp

DIR of --tools has the programs that build_tools.py makes for the set; DIR of --models has
nano-llama-f16.gguf and nano-nemotron-f16.gguf as llama.cpp's convert_hf_to_gguf.py makes them of
examples/nano-*. Programs run in a temporary folder of links to the files, with relative names only.

What depends on ggml's CPU kernels goes into --out/SET. What does not (tokens, quantized bytes, what
becomes of the matrices' files), and the importance matrices that all sets quantize with, is
recorded with AVX-512 alone; other sets must quantize to the bytes recorded there.
"""

import argparse
import array
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from completion_recording import record_completion, record_sampling
from imatrix_recording import record_imatrix_files
from llama_tools import (
    FINAL,
    INSTRUCTIONS,
    LAST_STATISTIC,
    MODELS,
    THREADS,
    Output,
    Workplace,
    about,
    divergence_of,
    perplexity_of,
    sha256_of,
    source_of,
    write_json,
)
from quantize_recording import make_levels, record_quantize
from tasks_recording import make_questions, record_tasks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Record = Callable[[Workplace, Path], None]
REFERENCE = "avx512"
CALIBRATION, HELD_OUT = "calibration.txt", "held-out.txt"
MEASURED_LEVELS = ("IQ1_S", "IQ2_M", "Q2_K", "IQ3_XXS", "IQ4_XS", "Q4_K_M", "Q6_K", "Q8_0")
DIVERGENCE_LEVELS = ("Q4_K_M", "IQ2_M")
DIVERGENCE_CHUNKS = 22  # five decodes of four, and one of two
PERPLEXITY_SETTINGS = {
    "c512-chunks22": ("-c", 512, "--chunks", DIVERGENCE_CHUNKS),
    "c128": ("-c", 128),
    "c512-b512": ("-c", 512, "-b", 512),
    "c256-chunks10": ("-c", 256, "--chunks", 10),
    # one to four sequences in a decode, and a chunk in several decodes
    "c512-b1024-chunks6": ("-c", 512, "-b", 1024, "--chunks", 6),
    "c512-b1536-chunks7": ("-c", 512, "-b", 1536, "--chunks", 7),
    "c1024-chunks5": ("-c", 1024, "--chunks", 5),
    "c1024-b512-chunks3": ("-c", 1024, "-b", 512, "--chunks", 3),
    "c128-b512-chunks18": ("-c", 128, "-b", 512, "--chunks", 18),
}

# the last of each brings the perplexity
MATRICES: dict[str, dict[str, tuple[str | int, ...]]] = {
    "nano-llama": {
        "nano-llama-10.imatrix.gguf": ("--chunks", 10),
        "nano-llama-10.imatrix.dat": ("--chunks", 10, "--output-format", "dat"),
        "nano-llama.imatrix.gguf": (),
        "nano-llama.imatrix.dat": ("--output-format", "dat"),
    },
    "nano-nemotron": {
        "nano-nemotron-10.imatrix.gguf": ("--chunks", 10),
        "nano-nemotron.imatrix.gguf": (),
    },
}


def record_imatrix(work: Workplace, out: Path) -> None:
    """Importance matrices of the calibration text, with the perplexity found on the way.

    The files stay in the workplace; the recording has their SHA-256.
    """
    document = work.header() | {"text_sha256": sha256_of(work.folder / CALIBRATION), "models": {}}
    for model in MODELS:
        entry = about(work, model) | {"files": {}}
        for name, chosen in MATRICES[model].items():
            output = work.run(
                "llama-imatrix", "-m", source_of(model), "-f", CALIBRATION, "-o", name, *chosen,
                "-t", THREADS, last=FINAL,
            )  # fmt: skip
            measured = perplexity_of(output)
            document["system"] = work.system(output)
            entry["files"][name] = {
                "command": measured.pop("command"),
                "sha256": sha256_of(work.folder / name),
            }
            entry["perplexity"] = measured
        document["models"][model] = entry
    write_json(out / "imatrix.json", document)


def record_perplexity(work: Workplace, out: Path) -> None:
    """Perplexity of the held-out text by level and settings; divergence of two levels from f16."""
    document = work.header() | {"text_sha256": sha256_of(work.folder / HELD_OUT), "models": {}}

    def measure(file: str, *options: str | int, last: str = FINAL) -> Output:
        return work.run("llama-perplexity", "-m", file, *options, "-t", THREADS, last=last)

    def diverge(file: str, *options: str) -> Output:
        return measure(file, "--kl-divergence", *options, last=LAST_STATISTIC)

    for model in MODELS:
        source, text = source_of(model), ("-f", HELD_OUT)
        levels = {"f16": perplexity_of(measure(source, *text))}
        for level in MEASURED_LEVELS:
            levels[level] = perplexity_of(measure(f"{model}-{level}.gguf", *text))
        settings = {
            name: perplexity_of(measure(source, *text, *options))
            for name, options in PERPLEXITY_SETTINGS.items()
        }
        logits = ("--kl-divergence-base", f"{model}.logits")
        base = measure(source, *text, *logits, "--chunks", DIVERGENCE_CHUNKS)
        document["system"] = work.system(base)
        divergence = {
            level: divergence_of(diverge(f"{model}-{level}.gguf", *logits))
            for level in DIVERGENCE_LEVELS
        }
        (work.folder / f"{model}.logits").unlink()
        document["models"][model] = about(work, model) | {
            "levels": levels,
            "f16_settings": settings,
            "divergence_base_command": base.command,
            "divergence": divergence,
        }
    write_json(out / "perplexity.json", document)


def record_tokenize(work: Workplace, out: Path) -> None:
    """How the texts tokenize; one newline at the end goes, as llama-perplexity -f does it."""
    document = work.header() | {"models": {}}
    for model in MODELS:
        texts = {}
        for name in (CALIBRATION, HELD_OUT):
            text = (work.folder / name).read_bytes().removesuffix(b"\n")
            output = work.run(
                "llama-tokenize", "-m", source_of(model), "--stdin", "--ids", "--no-escape",
                "--no-parse-special", "-lv", 0, stdin=text,
            )  # fmt: skip
            ids = array.array("i", map(int, re.findall(r"\d+", output.stdout.decode())))
            texts[name] = {
                "command": f"{output.command} < {name}, less one newline at its end",
                "count": len(ids),
                "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
                "first": list(ids[:32]),
                "last": list(ids[-8:]),
            }
        document["models"][model] = about(work, model) | {"texts": texts}
    write_json(out / "tokenize.json", document)


def record_once(work: Workplace, out: Path) -> None:
    """What is the same with every instruction set, and the matrices that all of them use."""
    for name in matrices():
        shutil.copy(work.folder / name, out / name)
    for record in (record_tokenize, record_imatrix_files, record_quantize):
        announced(record)(work, out)


def quantize_with_recorded(work: Workplace, out: Path) -> None:
    """Make the levels that are measured, with the recorded matrices in place of this set's."""
    for name in matrices():
        if (out / name).exists():  # the repository has those that tests read
            (work.folder / name).unlink()
            work.link(out / name)
    make_levels(work, out, MEASURED_LEVELS)


def matrices() -> list[str]:
    """The names of all importance matrices."""
    return [name for files in MATRICES.values() for name in files]


def announced(record: Record) -> Record:
    """Say on stderr what is recorded next."""
    print(record.__name__, file=sys.stderr, flush=True)
    return record


def main() -> int:
    """Record everything into --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", choices=INSTRUCTIONS, required=True, help="instruction set")
    parser.add_argument("--tools", type=Path, required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--models", type=Path, required=True, help="folder of the f16 GGUF files")
    parser.add_argument("--out", type=Path, required=True, help="where the recordings go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Workplace(arguments.tools, Path(folder), arguments.set)
        for path in (
            EXAMPLES / CALIBRATION,
            EXAMPLES / HELD_OUT,
            *(arguments.models / source_of(model) for model in MODELS),
        ):
            work.link(path)
        own = arguments.out / arguments.set
        own.mkdir(parents=True, exist_ok=True)
        announced(record_imatrix)(work, own)
        if arguments.set == REFERENCE:
            record_once(work, arguments.out)
        else:
            announced(quantize_with_recorded)(work, arguments.out)
        for record in (record_perplexity, record_completion, record_sampling):
            announced(record)(work, own)
        announced(make_questions)(work, arguments.out)
        announced(record_tasks)(work, own)
    return 0


if __name__ == "__main__":
    sys.exit(main())
