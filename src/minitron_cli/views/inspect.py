"""The description of one model, or the difference between two."""

from typing import Any

from minitron_cli.output import Output, printable
from minitron_cli.units import show_size
from minitron_quant.inspect.difference import same

_LONG_TEXT = 60


def show_description(out: Output, description: dict[str, Any]) -> None:
    """One model: facts, metadata, and its tensors where they are described."""
    if out.as_json:
        out.document(description)
        return
    for name, value in _facts(description):
        out.text(f"{name:16} {printable(value)}")
    out.text("")
    rows = [[key, _short(value)] for key, value in description["metadata"].items()]
    out.table(["Key", "Value"], rows, left=2)
    if "tensors" in description:
        out.text("")
        rows = [
            [t["name"], t["type"], " × ".join(map(str, t["shape"])), f"{t['bytes']:,}"]
            for t in description["tensors"]
        ]
        out.table(["Tensor", "Type", "Shape", "Bytes"], rows, left=2)


def _facts(description: dict[str, Any]) -> list[tuple[str, str]]:
    tokenizer, imatrix = description["tokenizer"], description["imatrix"]
    named = " ".join(filter(None, (tokenizer["model"], tokenizer["pre"])))
    facts = [
        ("file", ", ".join(description["files"])),
        ("architecture", description["architecture"]),
        ("level", description["level"] or "unknown"),
        ("size", show_size(description["bytes"])),
        ("weights", f"{description['weights']:,}"),
        ("bits per weight", f"{description['bits_per_weight']:.3f}"),
        ("types", ", ".join(f"{n} {name}" for name, n in description["types"].items())),
        ("tokenizer", f"{named}, {tokenizer['tokens']:,} tokens" if named else "none"),
    ]
    if tokenizer["chat_template"] is not None:
        facts.append(("chat template", f"{tokenizer['chat_template']:,} characters"))
    if imatrix is not None:
        told = f"{imatrix['file']}, of {imatrix['dataset']}, {imatrix['chunks_count']} chunks"
        facts.append(("imatrix", told))
    facts += [
        ("sha256", f"{digest}  {name}") for name, digest in description.get("sha256", {}).items()
    ]
    return facts


def show_difference(out: Output, difference: dict[str, Any]) -> None:
    """How two models differ."""
    if out.as_json:
        out.document(difference)
        return
    _show_models(out, difference["models"])
    _show_metadata(out, difference["metadata"])
    _show_tensors(out, difference["tensors"])
    if same(difference):
        out.text("\nThey do not differ.")


def _show_models(out: Output, models: list[dict[str, Any]]) -> None:
    rows = [
        [
            m["files"][0],
            m["level"] or "unknown",
            show_size(m["bytes"]),
            f"{m['bits_per_weight']:.3f}",
        ]
        for m in models
    ]
    out.table(["Model", "Level", "Size", "Bits/weight"], rows, left=2)


def _show_metadata(out: Output, metadata: dict[str, Any]) -> None:
    rows = [[key, _short(old), _short(new)] for key, (old, new) in metadata["changed"].items()]
    rows += [[key, _short(value), ""] for key, value in metadata["only_first"].items()]
    rows += [[key, "", _short(value)] for key, value in metadata["only_second"].items()]
    if rows:
        out.text("")
        out.table(["Key", "First", "Second"], rows, left=3)


def _show_tensors(out: Output, tensors: dict[str, Any]) -> None:
    rows = [[t["role"], t["first"], t["second"], str(t["tensors"])] for t in tensors["types"]]
    rows += [[name, str(old), str(new), "1"] for name, (old, new) in tensors["shapes"].items()]
    rows += [[name, "there", "", "1"] for name in tensors["only_first"]]
    rows += [[name, "", "there", "1"] for name in tensors["only_second"]]
    if rows:
        out.text("")
        out.table(["Tensor", "First", "Second", "Tensors"], rows, left=3)
    if tensors["data"] is not None:
        differ = tensors["data"]["differ"]
        out.text(f"\n{tensors['data']['equal']} tensors of one type and shape hold the same bytes")
        for name in differ:
            out.text(f"{name} differs")


def _short(value: Any) -> str:
    """A value on one line of a terminal."""
    if isinstance(value, dict):
        return f"{value['length']:,} values: {_short(value['first'])[:-1]}, …]"
    text = str(value).replace("\n", "⏎")
    return text if len(text) <= _LONG_TEXT else text[: _LONG_TEXT - 1] + "…"
