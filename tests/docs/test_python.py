"""The Python API: what importing it loads, where its names live, and the examples of its page."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import minitron
from helpers.markdown import blocks
from helpers.support import ROOT

PAGE = ROOT / "docs" / "python.md"
# what takes most of the time that a command needs to start
HEAVY = ("numpy", "llama_cpp", "huggingface_hub", "gguf", "typer", "rich", "jinja2")


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, minitron\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        f"assert not loaded & {{*{HEAVY}}}, loaded\n"
        "assert not {name for name in loaded if name.startswith('minitron_')}, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", dir(minitron))
def test_names_have_docstrings(name: str) -> None:
    value = getattr(minitron, name)
    assert inspect.getdoc(value)
    assert name in vars(minitron), "loaded once"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = minitron.quantise  # type: ignore[attr-defined]


def test_page_lists_every_function() -> None:
    functions = {name for name in dir(minitron) if inspect.isfunction(getattr(minitron, name))}
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    listed = {row.split("`")[1].partition("(")[0] for row in rows}
    assert listed == functions - {"parse_levels", "plan_contexts", "plan_tests"}


def test_page_examples_run(workshop: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(PAGE):
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)
