"""minitron inspect: what is in a GGUF file."""

from typing import Annotated, Any

import typer

from minitron_cli.parameters import Json, ModelPath, Quiet, Verbose

EXAMPLES = """minitron inspect out/nano-llama-Q4_K_M.gguf
minitron inspect out/nano-llama-Q4_K_M.gguf --tensors
minitron inspect someone/Minitron-4B-Base-GGUF:Q4_K_M
minitron inspect model-00001-of-00002.gguf --json"""


def inspect(
    model: ModelPath,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show metadata, sizes, bits per weight and types of a GGUF file, from its header alone."""
    from minitron_cli.inspection import describe
    from minitron_cli.models import model_header
    from minitron_cli.output import Output

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    with model_header(model) as path:
        description = describe(path, tensors)
    if as_json:
        out.document(description)
        return
    _show(out, description)


def _show(out: Any, description: dict[str, Any]) -> None:
    from minitron_cli.inspection import short_value
    from minitron_cli.sizes import show_size

    facts = [
        ("file", ", ".join(description["files"])),
        ("architecture", description["architecture"]),
        ("level", description["level"] or "unknown"),
        ("size", show_size(description["bytes"])),
        ("weights", f"{description['weights']:,}"),
        ("bits per weight", f"{description['bits_per_weight']:.3f}"),
        ("types", ", ".join(f"{n} {name}" for name, n in description["types"].items())),
    ]
    for name, value in facts:
        out.text(f"{name:16} {value}")
    out.text("")
    rows = [[key, short_value(value)] for key, value in description["metadata"].items()]
    out.table(["Key", "Value"], rows, left=2)
    if "tensors" in description:
        out.text("")
        rows = [
            [t["name"], t["type"], " × ".join(map(str, t["shape"])), f"{t['bytes']:,}"]
            for t in description["tensors"]
        ]
        out.table(["Tensor", "Type", "Shape", "Bytes"], rows, left=2)
