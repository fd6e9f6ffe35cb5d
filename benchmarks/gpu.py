"""Measure a GPU: beside llama.cpp's programs on it, beside the CPU, and beside the forecast.

    python benchmarks/gpu.py --tools DIR --model model-Q4_K_M.gguf --full model-F16.gguf

With CUDA in both (`make install CUDA=1`; llama.cpp built with -DGGML_CUDA=on) everything runs with
all layers on the GPU. Prints Markdown for results/gpu.md; says so and exits with 2 where there is
no GPU. --without-gpu tries the script itself, on the CPU.
"""

import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bench
import generate
from harness import (
    EXAMPLES,
    FAILED,
    USAGE,
    Case,
    Command,
    NotGiven,
    Setup,
    compare,
    machine,
    note,
    parser_for,
    run_once,
    table_of,
    text_options,
    workspace,
)

OUR_PPL = re.compile(r'"ppl": ([\d.]+)')
THEIR_PPL = re.compile(r"Final estimate: PPL = ([\d.]+)")
OUR_ERROR = re.compile(r'"ppl_error": ([\d.]+)')
LEFT_OUT = re.compile(r"ended before (\d+) of (\d+) tensors")
TENSORS = re.compile(r"\((\d+) tensors on ")
LEVEL = "Q3_K_M"
MORE_THAN_ALL = 999
PARSER = parser_for(__doc__)
text_options(PARSER)
PARSER.add_argument("--full", metavar="FILE", help="for imatrix, sensitivity and GPTQ: F16 or BF16")
PARSER.add_argument("--without-gpu", action="store_true", help="try the script on a CPU")


def perplexities(output: str) -> dict[str, float]:
    """The perplexity of either side, and our error of it."""
    patterns = {"ppl": OUR_PPL, "ppl error": OUR_ERROR}
    found = {name: pattern.search(output) for name, pattern in patterns.items()}
    found["ppl"] = found["ppl"] or THEIR_PPL.search(output)
    return {name: float(match[1]) for name, match in found.items() if match}


def tensors_measured(output: str) -> dict[str, float]:
    """How many tensors a sensitivity measured within its budget."""
    left, found = LEFT_OUT.search(output), TENSORS.search(output)
    if left:
        return {"tensors": float(left[2]) - float(left[1])}
    return {"tensors": float(found[1])} if found else {}


def beside_llama_cpp(setup: Setup, layers: int) -> list[Case]:
    """The same work of both programs with the same layers on the GPU."""
    model, given = setup.model(), setup.arguments
    text = ("-f", given.text or EXAMPLES / "held-out.txt", "--chunks", given.chunks)
    ours, theirs = ("--gpu-layers", layers), ("-ngl", layers)
    speed = setup.minitron("bench", model, "-p", 512, "-n", 128, *ours, "--json", "-q")
    answer = ("-n", 128, "--ignore-eos", "--temp", 0, "--json", "-q")
    test = ("-m", model, "-n", 128, *theirs, "-o", "json")
    return [
        Case(
            "speed",
            [speed],
            [setup.tool("llama-bench", *test, "-p", 512)],
            bench.speeds_of,
        ),
        Case(
            "generate beside tg128",
            [setup.minitron("generate", model, "The", *answer, *ours)],
            [setup.tool("llama-bench", *test, "-p", 0, "-r", 1)],
            generate.speeds_of,
        ),
        Case(
            "perplexity",
            [setup.minitron("ppl", model, *text, *ours, "--json", "-q")],
            [setup.tool("llama-perplexity", "-m", model, *text, *theirs)],
            perplexities,
        ),
    ]


def beside_cpu(setup: Setup, layers: int) -> list[Case]:
    """Our commands with all layers on the GPU, and with none."""
    model, given, folder = setup.model(), setup.arguments, setup.folder
    full = Path(given.full or model)
    chunks = given.chunks if given.chunks > 0 else 16
    held_out = ("-f", given.text or EXAMPLES / "held-out.txt", "--chunks", given.chunks)
    calibration = EXAMPLES / "calibration.txt"
    text: Command = ("-f", calibration)

    def case(name: str, words: Callable[[Path], Command], values: Any = None) -> Case:
        sides = [
            [setup.minitron(*words(folder / side), "--gpu-layers", number, "--force")]
            for side, number in (("gpu", layers), ("cpu", 0))
        ]
        return Case(name, *sides, **({"values": values} if values else {}))

    budget: Command = ("--budget", "3m")
    gptq: Command = ("--gptq", "--text", calibration, "--calibration-chunks", chunks)
    perplexity = setup.minitron("ppl", model, *held_out, "--json", "-q", "--gpu-layers")
    return [
        Case(
            "perplexity",
            [(*perplexity, layers)],
            [(*perplexity, 0)],
            perplexities,
        ),
        case(
            "imatrix",
            lambda out: ("imatrix", full, *text, "--chunks", chunks, "-o", f"{out}.imatrix.gguf"),
        ),
        case(
            "sensitivity",
            lambda out: ("sensitivity", full, *text, *budget, "-o", f"{out}.sensitivity.json"),
            tensors_measured,
        ),
        case(
            f"sequential GPTQ, {LEVEL}",
            lambda out: ("quantize", full, LEVEL, "-d", out, *gptq),
        ),
    ]


def forecast(setup: Setup, free: int) -> str:
    """Layers and memory as `advise` predicts them, and as `bench` finds them."""
    model = setup.model()
    said = _json(setup.minitron("advise", model, "--vram", free, "--ctx", 4096, "--json"))
    (level,) = (one for one in said["levels"] if one["path"])
    placed = _json(setup.minitron("bench", model, "-p", 512, "-n", 16, "--json", "-q"))[-1]
    memory = placed["device_memory_bytes"]
    found = f"{memory / 2**20:.0f}" if memory else "?"
    predicted = max(0, level["vram"] - said["reserve"]) / 2**20
    return "\n".join(
        [
            "| model | layers, predicted | layers, placed | MiB, predicted | MiB, found |",
            "|---|---:|---:|---:|---:|",
            f"| {model.stem} | {level['offloaded']} | {placed['n_gpu_layers']} "
            f"| {predicted:.0f} | {found} |",
        ]
    )


def free_memory(setup: Setup) -> int:
    """Free bytes of all GPUs; NotGiven where there is none."""
    found = _json(setup.minitron("doctor", "--json"), may_fail=True)
    free = sum(each["free"] for each in found["devices"] if each["kind"] == "gpu")
    if not free and not setup.arguments.without_gpu:
        raise NotGiven("no GPU here, or minitron is built without CUDA: make install CUDA=1")
    return int(free)


def _json(command: Command, *, may_fail: bool = False) -> Any:
    # doctor ends with 1 where it finds a problem
    words = ["sh", "-c", '"$@" || true', "sh", *command] if may_fail else command
    output = run_once([words]).output
    first = min(at for at in (output.find("{"), output.find("[")) if at >= 0)
    return json.JSONDecoder().raw_decode(output[first:])[0]


def measured(cases: Sequence[Case], given: Namespace) -> list[dict[str, Any]]:
    """The comparisons that worked; what failed is said."""
    found = []
    for case in cases:
        if given.only and given.only not in case.name:
            continue
        try:
            found.append(asdict(compare(case, given.runs, given.warm_ups)))
        except RuntimeError as failure:
            print(f"gpu.py: {case.name}: {failure}", file=sys.stderr)
    return found


def main() -> int:
    """Measure what there is, and print it; 1 if something failed."""
    given = PARSER.parse_args()
    with workspace() as temporary:
        setup = Setup(given, Path(temporary))
        try:
            free = free_memory(setup)
            layers = 0 if given.without_gpu else MORE_THAN_ALL
            groups = {
                ("minitron", "llama.cpp"): beside_llama_cpp(setup, layers),
                ("on GPU", "on CPU"): beside_cpu(setup, layers),
            }
        except NotGiven as reason:
            print(f"gpu.py: {reason}", file=sys.stderr)
            return USAGE
        parts = [f"- {name}: {value}" for name, value in machine().items()]
        complete = True
        for sides, cases in groups.items():
            cases = [replace(case, name=f"{setup.model().stem}, {case.name}") for case in cases]
            rows = measured(cases, given)
            complete &= bool(given.only) or len(rows) == len(cases)
            parts += ["", table_of(rows, sides)]
        parts += ["", forecast(setup, free)]
    note("")
    print("\n".join(parts))
    return 0 if complete else FAILED


if __name__ == "__main__":
    sys.exit(main())
