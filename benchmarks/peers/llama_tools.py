"""Run llama.cpp's own programs in a folder of relative names, and read what they print."""

import hashlib
import json
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMIT = "0c1e57098"
THREADS = 2
ATTEMPTS = 20
MODELS = ("nano-llama", "nano-nemotron")
NOTES = {"nano-nemotron": "the model file has no tokenizer.ggml.add_space_prefix key"}
# what ggml says of kernels that are compiled for a set, and must not say
INSTRUCTIONS = {
    "avx512": ({"AVX2", "FMA", "F16C", "AVX512"}, set[str]()),
    # FP16 is not among what it says: a native build on a processor that has it
    "avx512_fp16": ({"AVX2", "FMA", "F16C", "AVX512", "AVX512_BF16"}, set[str]()),
    "avx2": ({"AVX2", "FMA", "F16C"}, {"AVX512"}),
}
NUMBER = r"-?(?:[\d.]+|nan|inf)"
FINAL = rf"Final estimate: PPL = ({NUMBER}) \+/- ({NUMBER})"
LAST_STATISTIC = r"Same top p: .*%"


@dataclass(frozen=True)
class Output:
    """What a program printed, and its command line with the program's name only."""

    command: str
    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Both streams, stdout first; a byte that is not UTF-8 becomes a replacement character."""
        return self.stdout.decode(errors="replace") + "\n" + self.stderr


class Workplace:
    """A folder where every name is relative, so that no path gets into a command or a file."""

    def __init__(self, tools: Path, folder: Path, instructions: str) -> None:
        self._tools = tools.resolve()
        self._instructions = INSTRUCTIONS[instructions]
        self.folder = folder
        self.version = self._version()

    def link(self, path: Path) -> None:
        """Make a file reachable here under its own name; FileNotFoundError where it is missing."""
        (self.folder / path.name).symlink_to(path.resolve(strict=True))

    def run(
        self,
        program: str,
        *arguments: str | float,
        stdin: bytes = b"",
        last: str = "",
        may_fail: bool = False,
    ) -> Output:
        """Run a program to its end; RuntimeError with its last words where it fails.

        Programs that log from a thread of their own now and then leave before their last lines are
        written: such a run is repeated until the pattern `last` is found in what was printed.
        """
        command = shlex.join([program, *map(str, arguments)])
        for _ in range(ATTEMPTS):
            done = subprocess.run(
                [str(self._tools / program), *map(str, arguments)],
                cwd=self.folder,
                input=stdin,
                capture_output=True,
                # llama.cpp takes options from LLAMA_ARG_* as well
                env={k: v for k, v in os.environ.items() if not k.startswith("LLAMA_")},
                check=False,
            )
            words = done.stderr.decode(errors="replace")
            output = Output(command, done.returncode, done.stdout, words)
            if done.returncode and not may_fail:
                raise RuntimeError(f"{command}\n{output.text[-2000:]}")
            if re.search(last, output.text):
                return output
        raise RuntimeError(f"the output of {command} never has {last}")

    def header(self) -> dict[str, Any]:
        """The keys every recording starts with."""
        return {"llama_cpp": COMMIT, "version": self.version}

    def system(self, output: Output) -> str:
        """What a program says of its kernels; RuntimeError if they are not of this set."""
        found = re.search(r"system_info: (.*)", output.text)
        system = found[1].rstrip(" |") if found else ""
        has, lacks = self._instructions
        features = set(re.findall(r"(\w+) = 1", system))
        if not has <= features or lacks & features:
            raise RuntimeError(f"the programs are built for another instruction set: {system}")
        return system

    def _version(self) -> str:
        output = self.run("llama-imatrix", "--version")
        found = re.search(r"version: (.*commit (\w+).*)", output.text)
        if not found or not COMMIT.startswith(found[2]):
            raise RuntimeError(f"the programs are not of llama.cpp {COMMIT}: {output.text.strip()}")
        return found[1]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_of(model: str) -> str:
    """The name of a model's f16 file."""
    return f"{model}-f16.gguf"


def about(work: Workplace, model: str) -> dict[str, Any]:
    """What a recording says of a model: file, SHA-256, and a note where there is one."""
    source = source_of(model)
    known = {"file": source, "sha256": sha256_of(work.folder / source)}
    return known | ({"note": NOTES[model]} if model in NOTES else {})


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write JSON with one line per value and lists of plain values on one line."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    flat = re.sub(
        r"\[\n\s*([^\[\]{}]*?)\n\s*\]",
        lambda found: "[" + re.sub(r"\n\s*", " ", found[1]) + "]",
        text,
    )
    path.write_text(flat + "\n", encoding="utf-8")


def perplexity_of(output: Output) -> dict[str, Any]:
    """The final estimate, its error and the running values of llama-perplexity or llama-imatrix.

    Four decimals, and five for the error, as printed.
    """
    final = re.search(FINAL, output.text)
    chunks = re.search(r"over (\d+) chunks, (n_ctx=\d+, batch_size=\d+, n_seq=\d+)", output.text)
    if not final or not chunks:
        raise RuntimeError(f"no perplexity in the output of {output.command}")
    running = re.findall(rf"\[\d+\]({NUMBER}),", output.stdout.decode())
    if len(running) != int(chunks[1]):
        raise RuntimeError(f"{len(running)} running values for {chunks[1]} chunks")
    return {
        "command": output.command,
        "chunks": int(chunks[1]),
        "settings": chunks[2],
        "ppl": float(final[1]),
        "error": float(final[2]),
        "running": [float(value) for value in running],
    }


def divergence_of(output: Output) -> dict[str, Any]:
    """Every statistic of llama-perplexity --kl-divergence, and its table of running values."""
    result: dict[str, Any] = {"command": output.command, "chunk_columns": [], "chunks": []}
    section: dict[str, Any] = {}
    for line in output.stdout.decode().splitlines():
        if title := re.fullmatch(r"=+ (.+) =+", line):
            section = result.setdefault(title[1], {})
        elif row := re.fullmatch(rf" *(\d+)((?: +{NUMBER} ± +{NUMBER} *%?)+) *", line):
            values = re.findall(NUMBER, row[2])
            result["chunks"].append([int(row[1]), *map(float, values)])
        elif found := re.fullmatch(rf"(.+?) *: *({NUMBER}) *(?:± *({NUMBER}))? *(%?)", line):
            value, error = float(found[2]), found[3]
            entry: dict[str, Any] = {"value": value}
            if error:
                entry["error"] = float(error)
            if found[4]:
                entry["unit"] = "%"
            section[re.sub(r" +", " ", found[1].strip())] = entry
        elif line.startswith("chunk"):
            names = re.split(r" {2,}", line.strip())[1:]
            result["chunk_columns"] = ["chunk", *(x for name in names for x in (name, "error"))]
    if len(result) != 6 or not result["chunks"]:
        raise RuntimeError(f"no statistics in the output of {output.command}")
    return result
