"""The wheel: complete, and able to run outside the tree."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S leaves out the editable installation; only the dependencies are taken from it
    code = (
        f"import sys; sys.path[:0] = [{str(installed)!r}]; "
        f"sys.path.append({sysconfig.get_path('purelib')!r}); "
        "from minitron_cli.main import main; main()"
    )
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_every_module_is_in_the_wheel(installed: Path) -> None:
    for root in ("src", "convert", "quant"):
        for path in (ROOT / root).rglob("*.py"):
            assert (installed / path.relative_to(ROOT / root)).is_file()


def test_the_wheel_runs_outside_the_tree(installed: Path, nano_llama: Path, tmp_path: Path) -> None:
    version = run(installed, tmp_path, "--version")
    assert version.returncode == 0 and version.stdout.startswith("minitron ")
    ran = run(installed, tmp_path, "quantize", str(nano_llama), "Q4_0", "-d", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "nano-llama-Q4_0.gguf").is_file()
