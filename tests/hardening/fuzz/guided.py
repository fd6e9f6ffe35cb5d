"""Inputs found by coverage: atheris drives the parsers that are Python, from the same seeds.

python -m hardening.fuzz.guided TARGET RUNS     (with tests/ on PYTHONPATH, and atheris installed)
ends with an exit code other than 0, and the input, at the first finding.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

# the parsers alone: instrumenting everything takes longer than trying inputs
PARTS = ("gguf_file", "json_files", "pickle_values", "safetensors_file", "torch_file", "vocab")
INCLUDED = [f"minitron_convert.{part}" for part in PARTS]
INCLUDED += ["minitron_quant.imatrix.files", "minitron_quant.tasks", "minitron_cli.pipeline"]

with atheris.instrument_imports(include=INCLUDED):
    from hardening.fuzz.runner import LARGEST, OURS, faults_of
    from hardening.fuzz.targets import PARSERS


def main() -> None:
    """The command line."""
    name, runs = sys.argv[1:3]
    target = PARSERS[name]
    with tempfile.TemporaryDirectory() as place:
        folder, corpus = Path(place) / "in", Path(place) / "corpus"
        folder.mkdir()
        corpus.mkdir()
        for number, seed in enumerate(target.seeds()):
            (corpus / str(number)).write_bytes(seed)
        parse = target.prepare(folder)

        def one(data: bytes) -> None:
            try:
                parse(data)
            except OURS as error:
                faults = list(faults_of(error))
                if faults:
                    raise AssertionError(f"{faults}: {error}") from error

        limits = ["-timeout=10", f"-rss_limit_mb={1 << 10}", f"-max_len={LARGEST >> 4}"]
        atheris.Setup([sys.argv[0], f"-atheris_runs={runs}", *limits, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
