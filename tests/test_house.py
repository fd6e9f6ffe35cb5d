"""The shape of the house: which package may import which, and what stays out of the way."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "minitron": ROOT / "src" / "minitron",
    "minitron_cli": ROOT / "src" / "minitron_cli",
    "minitron_core": ROOT / "src" / "minitron_core",
    "minitron_engine": ROOT / "src" / "minitron_engine",
    "minitron_convert": ROOT / "convert" / "minitron_convert",
    "minitron_quant": ROOT / "quant" / "minitron_quant",
}
# the arrows of the architecture
ALLOWED = {
    "minitron_cli": (
        "minitron",
        "minitron_quant",
        "minitron_convert",
        "minitron_engine",
        "minitron_core",
    ),
    "minitron": ("minitron_quant", "minitron_convert", "minitron_engine", "minitron_core"),
    "minitron_quant": ("minitron_engine", "minitron_core"),
    "minitron_engine": ("minitron_core",),
    "minitron_convert": ("minitron_core",),
    "minitron_core": (),
}


@cache
def parsed(source: Path) -> ast.Module:
    return ast.parse(source.read_text())


@cache
def imported(source: Path) -> tuple[str, ...]:
    return tuple(_imported(source))


def _imported(source: Path) -> Iterator[str]:
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> list[tuple[str, Path]]:
    return [(name, path) for name, root in PACKAGES.items() for path in sorted(root.rglob("*.py"))]


def test_imports_run_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package, path in modules()
        for name in imported(path)
        if name.split(".")[0] in PACKAGES and name.split(".")[0] not in (package, *ALLOWED[package])
    ]
    assert wrong == []


def rooms(package: str) -> dict[str, set[str]]:
    """The folders of a package, and the modules beside them, with those that each imports."""
    root, found = PACKAGES[package], defaultdict[str, set[str]](set)
    here = {path.stem for path in root.iterdir() if path.is_dir() or path.suffix == ".py"}
    for path in sorted(root.rglob("*.py")):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == package and len(parts) > 1 and parts[1] in here - {room}:
                found[room].add(parts[1])
    return found


@pytest.mark.parametrize("package", ["minitron_engine", "minitron_quant", "minitron_convert"])
def test_folders_form_no_cycle(package: str) -> None:
    try:
        TopologicalSorter(rooms(package)).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def test_modules_have_at_most_350_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for _, path in modules()
        if (count := len(path.read_text().splitlines())) > 350
    }
    assert long == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_public_classes_of_a_package_have_names_of_their_own(package: str) -> None:
    places = defaultdict(list)
    for name, path in modules():
        for node in parsed(path).body if name == package else ():
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGES[package])))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_only_the_command_line_knows_the_terminal() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package, path in modules()
        for name in imported(path)
        if package != "minitron_cli" and name.split(".")[0] in ("typer", "rich")
    ]
    assert wrong == []


def test_convert_needs_neither_llama_cpp_nor_torch() -> None:
    heavy = ("llama_cpp", "torch", "transformers")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package, path in modules()
        for name in imported(path)
        if package == "minitron_convert" and name.split(".")[0] in heavy
    ]
    assert wrong == []


def test_llama_cpp_is_imported_in_one_place() -> None:
    # elsewhere: from minitron_engine.llama.binding import api
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for _, path in modules()
        for name in imported(path)
        if name in ("llama_cpp", "llama_cpp.llama_cpp") and path.name != "binding.py"
    ]
    assert wrong == []


def test_the_binding_comes_without_the_rest_of_its_package() -> None:
    code = (
        "import sys\n"
        "from minitron_engine.llama import devices\n"
        "devices.start()\n"
        "assert not {'jinja2', 'diskcache', 'llama_cpp.llama'} & set(sys.modules)\n"
        "import llama_cpp\n"
        "from llama_cpp import llama_cpp as api\n"
        "assert api is devices.api and llama_cpp.Llama.__module__ == 'llama_cpp.llama'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_process_that_plans_loads_little() -> None:
    code = (
        "import sys, minitron_quant.quantize.dry_run_child\n"
        "assert not {'numpy', 'multiprocessing', 'jinja2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", ["--help", "quantize --help"])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys; from minitron_cli.main import app\n"
        f"try: app({command.split()!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'llama_cpp', 'huggingface_hub', 'gguf'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
