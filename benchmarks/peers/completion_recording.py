"""Record what llama-completion writes, by ways of sampling."""

import re
import struct
from pathlib import Path
from typing import Any

from llama_tools import MODELS, THREADS, Workplace, about, source_of, write_json

PROMPTS = ("The old house stood", "She had never", "It was a dark and stormy night;")
LENGTHS = (64, 256)
# every sampler is named, because the programs also read defaults from the model's metadata
COMMON_SAMPLING: tuple[str | float, ...] = (
    *("--samplers", "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"),
    *("--repeat-last-n", 64, "--presence-penalty", 0, "--frequency-penalty", 0, "--typical", 1),
    *("--mirostat", 0, "--xtc-probability", 0, "--xtc-threshold", 0.1, "--top-n-sigma", -1),
    *("--dry-multiplier", 0, "--dynatemp-range", 0),
)
AFTER_THE_TEXT = "graphs reused"
SAMPLINGS = {
    "greedy": "--temp 0 --top-k 40 --top-p 0.95 --min-p 0.05 --seed 7 --repeat-penalty 1",
    "default": "--temp 0.8 --top-k 40 --top-p 0.95 --min-p 0.05 --seed 7 --repeat-penalty 1",
    "penalty": "--temp 0.8 --top-k 40 --top-p 0.95 --min-p 0.05 --seed 7 --repeat-penalty 1.1",
    "untruncated": "--temp 1 --top-k 0 --top-p 1 --min-p 0 --seed 11 --repeat-penalty 1",
    "narrow": "--temp 0.6 --top-k 100 --top-p 0.9 --min-p 0 --seed 123 --repeat-penalty 1",
}
# every knob, alone and in company; flags are the same ones that `minitron generate` takes
SAMPLING_WORDS = {
    "greedy": "--temp 0 --seed 1",
    "greedy-penalties": "--temp 0 --repeat-penalty 1.2 --repeat-last-n 96 --seed 1",
    "greedy-dry": "--temp 0 --dry-multiplier 0.9 --dry-penalty-last-n 256 --seed 1",
    "default": "--seed 1",
    "seed-0": "--seed 0",
    "largest-seed": "--seed 4294967294",
    "hot": "--temp 1.7 --top-k 0 --top-p 1 --min-p 0 --seed 2",
    "repeat": "--repeat-penalty 1.3 --repeat-last-n 200 --seed 3",
    "presence": "--presence-penalty 0.8 --seed 4",
    "frequency": "--frequency-penalty 0.4 --repeat-last-n 32 --seed 5",
    "no-window": "--repeat-penalty 1.5 --repeat-last-n 0 --seed 6",
    "dry": "--dry-multiplier 0.8 --temp 0.6 --seed 7",
    "dry-long": (
        "--dry-multiplier 1.4 --dry-base 1.3 --dry-allowed-length 1 --dry-penalty-last-n 400"
        " --dry-sequence-breaker . --dry-sequence-breaker , --temp 0.4 --seed 8"
    ),
    "dry-unbroken": "--dry-multiplier 1 --dry-sequence-breaker none --temp 0.5 --seed 9",
    "top-n-sigma": "--top-n-sigma 1.2 --temp 1.3 --seed 10",
    "top-k": "--top-k 5 --seed 11",
    "large-top-k": "--top-k 300 --temp 1.2 --seed 12",
    "typical": "--typical 0.6 --seed 13",
    "top-p": "--top-p 0.6 --top-k 0 --seed 14",
    "min-p": "--min-p 0.2 --temp 1.5 --seed 15",
    "xtc": "--xtc-probability 0.6 --xtc-threshold 0.12 --seed 16",
    "dynatemp": "--temp 1 --dynatemp-range 0.7 --dynatemp-exp 1.4 --seed 17",
    "mirostat-1": "--mirostat 1 --mirostat-lr 0.2 --mirostat-ent 4 --seed 18",
    "mirostat-2": "--mirostat 2 --mirostat-ent 3 --temp 0.9 --seed 19",
    "logit-bias": "-l 300+3.5 --logit-bias 310-inf -l 262-2 --seed 20",
    "ignore-eos": "--ignore-eos --temp 1.1 --seed 21",
    "order": "--samplers temperature;top_p;top-k;penalties --repeat-penalty 1.1 --seed 22",
    "one-sampler": "--samplers min_p --min-p 0.1 --seed 23",
    "adaptive-p": (
        "--samplers min_p;adaptive_p --adaptive-target 0.4 --adaptive-decay 0.8 --seed 24"
    ),
    "together": (
        "--repeat-penalty 1.05 --presence-penalty 0.1 --dry-multiplier 0.5 --top-n-sigma 2"
        " --typical 0.95 --top-k 80 --top-p 0.97 --min-p 0.02 --xtc-probability 0.2"
        " --xtc-threshold 0.2 --temp 0.9 --dynatemp-range 0.3 --seed 25"
    ),
    "grammar": "--grammar words.gbnf --seed 26",
    "grammar-hot": "--grammar words.gbnf --temp 1.4 --min-p 0 --top-k 0 --top-p 1 --seed 27",
}
GRAMMAR = r"""# sentences of short words
root ::= (sentence " ")+
sentence ::= [A-Z] [a-z]{1,7} (" " word){2,9} [.!]
word ::= [a-z]{1,8} | "é" | [^a-zA-Z0-9. !\n]
"""
SAMPLING_LENGTH = 256
SHIFT_WORDS, SHIFT_CONTEXT, SHIFT_LENGTH = "--context-shift --keep 3 --seed 31", 256, 400


def session_tokens(path: Path) -> list[int]:
    """The token ids in a llama.cpp session file: after magic and version, a count and int32s."""
    data = path.read_bytes()
    (count,) = struct.unpack_from("<I", data, 8)
    return list(struct.unpack_from(f"<{count}i", data, 12))


def complete(
    work: Workplace, model: str, prompt: str, sampling: str, length: int, *common: str | float
) -> dict[str, Any]:
    """One completion: the text as printed, and ids from a second run that saves its session.

    Saving splits the prompt into two batches, which can change the last bits of the logits: where
    the second run draws another text, there are no ids (`tokens` is null).
    """
    options: tuple[str | float, ...] = (
        "-m", source_of(model), "-p", prompt, "-n", length, "-c", 1024, "-t", THREADS, "-no-cnv",
        "--no-display-prompt", *sampling.split(), *common,
    )  # fmt: skip
    output = work.run("llama-completion", *options, last=AFTER_THE_TEXT)
    session = work.folder / "session.bin"
    session.unlink(missing_ok=True)
    saving = ("--prompt-cache", session.name, "--prompt-cache-all")
    saved = work.run("llama-completion", *options, *saving, last=AFTER_THE_TEXT)
    text = output.stdout.removesuffix(b"\n\n")
    shown = text.removesuffix(b" [end of text]\n")
    tokens = session_tokens(session)
    ids = work.run(
        "llama-tokenize", "-m", source_of(model), "-p", prompt, "--ids", "-lv", 0
    ).stdout.decode()
    prompt_ids = [int(word) for word in re.findall(r"\d+", ids)]
    if tokens[: len(prompt_ids)] != prompt_ids:
        raise RuntimeError(f"the session of {output.command} does not begin with its prompt")
    return {
        "command": output.command,
        "prompt": prompt,
        "length": length,
        "prompt_tokens": prompt_ids,
        "tokens": tokens[len(prompt_ids) :] if saved.stdout.startswith(text) else None,
        "ended": shown != text,
        "text": shown.decode(errors="replace"),
    }


def record_completion(work: Workplace, out: Path) -> None:
    """Completions of three prompts: greedy at two lengths, and four seeded ways of sampling."""
    document = work.header() | {"models": {}}
    for model in MODELS:
        completions = {
            name: [
                complete(work, model, prompt, sampling, length, *COMMON_SAMPLING)
                for prompt in PROMPTS
                for length in (LENGTHS if name == "greedy" else LENGTHS[:1])
            ]
            for name, sampling in SAMPLINGS.items()
        }
        document["models"][model] = about(work, model) | {"completions": completions}
    write_json(out / "completion.json", document)


def record_sampling(work: Workplace, out: Path) -> None:
    """256 tokens by every setting of the samplers, from three prompts; and a shifted context."""
    document = work.header() | {"grammar": GRAMMAR, "models": {}}
    (work.folder / "words.gbnf").write_text(GRAMMAR, encoding="utf-8")
    for model in MODELS:
        entries = {}
        for number, (name, words) in enumerate(SAMPLING_WORDS.items()):
            # their option for a file has another name
            theirs = words.replace("--grammar ", "--grammar-file ")
            prompt = PROMPTS[number % len(PROMPTS)]
            entry = complete(work, model, prompt, theirs, SAMPLING_LENGTH)
            entries[name] = {"options": words} | entry
        # a shifted session is not saved: there are no ids
        shifted = complete(work, model, PROMPTS[0], SHIFT_WORDS, SHIFT_LENGTH, "-c", SHIFT_CONTEXT)
        shifted |= {"options": SHIFT_WORDS, "context": SHIFT_CONTEXT, "tokens": None}
        document["models"][model] = about(work, model) | {"settings": entries, "shift": shifted}
    write_json(out / "sampling.json", document)
