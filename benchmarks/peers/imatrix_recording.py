"""Record what llama-imatrix says of an importance matrix, and what it makes of two."""

import re
from pathlib import Path
from typing import Any

from llama_tools import Output, Workplace, sha256_of, source_of, write_json

MODEL = "nano-llama"
FILES = (f"{MODEL}.imatrix.gguf", f"{MODEL}.imatrix.dat")
WEIGHT = re.compile(r"^ +(\d+)\t(\S+) *\t(.+)$", re.MULTILINE)
LAYER = re.compile(r"^ +(\d+)\t +([\d.]+)\t +([\d.]+)%\t *([\d.]+)$", re.MULTILINE)
COLUMNS = (
    *("total", "least", "most", "mean", "deviation", "active_pct", "columns"),
    *("entropy", "entropy_pct", "z_pct", "similarity"),
)


def record_imatrix_files(work: Workplace, out: Path) -> None:
    """Statistics and merging of the matrices recorded before, which the workplace has."""
    model = ("-m", source_of(MODEL))
    shown = shown_statistics(work, model)
    weights = {
        f"blk.{layer}.{name}.weight": dict(zip(COLUMNS, numbers(values), strict=True))
        for layer, name, values in WEIGHT.findall(shown.text)
    }
    found = LAYER.findall(shown.text)
    layers = {layer: [float(value) for value in values] for layer, *values in found}
    merged: dict[str, Any] = {}
    for files in ((FILES[0], FILES[0]), FILES):
        inputs = [word for name in files for word in ("--in-file", name)]
        output = work.run("llama-imatrix", *model, *inputs, "-o", "merged.gguf")
        merged[" ".join(files)] = {
            "command": output.command,
            "sha256": sha256_of(work.folder / "merged.gguf"),
        }
    document = work.header() | {"command": shown.command, "weights": weights}
    write_json(out / "imatrix-files.json", document | {"layers": layers, "merged": merged})


def shown_statistics(work: Workplace, model: tuple[str, str]) -> Output:
    """What --show-statistics prints; the program may end before its last lines are written."""
    plain = ("--no-log-prefix", "--no-log-timestamps")
    for _ in range(20):
        output = work.run(
            "llama-imatrix", *model, "--in-file", FILES[0], "--show-statistics", *plain
        )
        if LAYER.findall(output.text)[-1:] and output.text.endswith("\n\n"):
            return output
    raise RuntimeError("llama-imatrix never printed its statistics to the end")


def numbers(text: str) -> list[float]:
    """The numbers of a line's cells."""
    return [float(cell.strip().rstrip("%")) for cell in text.split("\t")]
