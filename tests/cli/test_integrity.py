"""minitron verify --manifest: a flipped bit, a missing file, a manifest that lies."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.support import fails, quantize


@pytest.fixture
def manifest(nano_llama: Path, tmp_path: Path) -> Path:
    source = tmp_path / "nano-F16.gguf"
    shutil.copy(nano_llama, source)
    quantize(source, tmp_path, "Q8_0", "Q4_0")
    return tmp_path / "nano.manifest.json"


def states(minitron: Any, manifest: Path) -> tuple[int, dict[str, str]]:
    ran = minitron("verify", "--manifest", manifest, "--json")
    return ran.code, {file["name"]: file["state"] for file in ran.document["files"]}


def test_verify_manifest_passes_unchanged_files(minitron: Any, manifest: Path) -> None:
    assert states(minitron, manifest) == (
        0,
        {"nano-Q8_0.gguf": "ok", "nano-Q4_0.gguf": "ok", "nano-F16.gguf": "ok"},
    )
    (manifest.parent / "nano-F16.gguf").unlink()  # what they were made from is not needed
    assert minitron("verify", "--manifest", manifest).code == 0


@pytest.mark.parametrize("name", ["nano-Q8_0.gguf", "nano-F16.gguf"])
def test_verify_manifest_finds_a_flipped_bit(name: str, minitron: Any, manifest: Path) -> None:
    path = manifest.parent / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, found = states(minitron, manifest)
    assert code == 8 and found[name] == "changed"
    assert list(found.values()).count("ok") == 2
    assert f"CHANGED  {name}" in minitron("verify", "--manifest", manifest).out


def test_verify_manifest_finds_missing_and_cut_files(minitron: Any, manifest: Path) -> None:
    (manifest.parent / "nano-Q8_0.gguf").unlink()
    with (manifest.parent / "nano-Q4_0.gguf").open("r+b") as file:
        file.truncate(1000)
    code, found = states(minitron, manifest)
    assert code == 8
    assert (found["nano-Q8_0.gguf"], found["nano-Q4_0.gguf"]) == ("missing", "changed")


@pytest.mark.parametrize("name", ["../nano-F16.gguf", "/etc/hostname", "", ".."])
def test_check_manifest_stays_in_its_folder(name: str, minitron: Any, manifest: Path) -> None:
    document = json.loads(manifest.read_text())
    document["levels"]["Q8_0"]["files"][0]["name"] = name
    manifest.write_text(json.dumps(document))
    fails(minitron("verify", "--manifest", manifest), 8, "not a manifest")


@pytest.mark.parametrize("text", ["", "[]", '{"levels": 3}', '{"levels": {"Q8_0": {}}}'])
def test_verify_manifest_refuses_other_files(text: str, minitron: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.manifest.json"
    fails(minitron("verify", "--manifest", path), 3, "does not exist")
    path.write_text(text)
    fails(minitron("verify", "--manifest", path), 8, "not a manifest")


def test_verify_takes_a_manifest_or_a_model(minitron: Any, manifest: Path) -> None:
    assert minitron("verify").code == 2
    assert minitron("verify", "x", "--manifest", manifest).code == 2
