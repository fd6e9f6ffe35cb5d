"""Record what llama.cpp's own programs answer on the examples, for the tests to compare with.

    python benchmarks/peers/record_tools.py --tools DIR --models DIR --out tests/data/llama_cpp

DIR of --tools has llama-imatrix, llama-quantize, llama-perplexity, llama-completion and
llama-tokenize of llama.cpp 0c1e57098; DIR of --models has nano-llama-f16.gguf and
nano-nemotron-f16.gguf as its convert_hf_to_gguf.py makes them of examples/nano-*.
Programs run in a temporary folder of links to the files, with relative names only.
"""

import argparse
import array
import hashlib
import re
import shutil
import sys
import tempfile
from pathlib import Path

from completion_recording import record_completion, record_sampling
from imatrix_recording import record_imatrix_files
from llama_tools import (
    FINAL,
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
    system_of,
    write_json,
)
from quantize_recording import record_quantize
from tasks_recording import record_tasks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CALIBRATION, HELD_OUT = "calibration.txt", "held-out.txt"
MEASURED_LEVELS = ("IQ1_S", "IQ2_M", "Q2_K", "IQ3_XXS", "IQ4_XS", "Q4_K_M", "Q6_K", "Q8_0")
DIVERGENCE_LEVELS = ("Q4_K_M", "IQ2_M")
PERPLEXITY_SETTINGS = {
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
        "nano-llama.imatrix.gguf": (),
        "nano-llama.imatrix.dat": ("--output-format", "dat"),
    },
    "nano-nemotron": {
        "nano-nemotron-10.imatrix.gguf": ("--chunks", 10),
        "nano-nemotron.imatrix.gguf": (),
    },
}


def record_imatrix(work: Workplace, out: Path) -> None:
    """Importance matrices of the calibration text, with the perplexity found on the way."""
    document = work.header() | {"text_sha256": sha256_of(work.folder / CALIBRATION), "models": {}}
    for model in MODELS:
        entry = about(work, model) | {"files": {}}
        for name, chosen in MATRICES[model].items():
            output = work.run(
                "llama-imatrix", "-m", source_of(model), "-f", CALIBRATION, "-o", name, *chosen,
                "-t", THREADS, last=FINAL,
            )  # fmt: skip
            shutil.copy(work.folder / name, out / name)
            measured = perplexity_of(output)
            document["system"] = system_of(output)
            entry["files"][name] = {
                "command": measured.pop("command"),
                "sha256": sha256_of(out / name),
            }
            entry["perplexity"] = measured
        document["models"][model] = entry
    write_json(out / "imatrix.json", document)


def record_perplexity(work: Workplace, out: Path) -> None:
    """Perplexity of the held-out text by level and settings; divergence of two levels."""
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
        base = measure(source, *text, *logits)
        document["system"] = system_of(base)
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


def main() -> int:
    """Record everything into --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tools", type=Path, required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--models", type=Path, required=True, help="folder of the f16 GGUF files")
    parser.add_argument("--out", type=Path, required=True, help="where the recordings go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Workplace(arguments.tools, Path(folder))
        for path in (
            EXAMPLES / CALIBRATION,
            EXAMPLES / HELD_OUT,
            *(arguments.models / source_of(model) for model in MODELS),
        ):
            work.link(path)
        for record in (
            record_tokenize,
            record_imatrix,
            record_imatrix_files,
            record_quantize,
            record_perplexity,
            record_completion,
            record_tasks,
            record_sampling,
        ):
            print(record.__name__, file=sys.stderr, flush=True)
            record(work, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
