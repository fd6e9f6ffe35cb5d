"""minitron card: what stands in it comes from the files, the report and the source's card."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from helpers.support import EXAMPLES, RECORDED, fails, with_template
from minitron_cli.hub.card import make_card, names, write_card
from minitron_cli.hub.card_head import CardSettings
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.gguf import GgufWriter, TensorSpec, open_gguf
from minitron_quant.gptq.estimate import gptq_keys

REFERENCE = "nano-F16.gguf"


def row(name: str, ppl: float, kld: float | None) -> dict[str, Any]:
    return {
        "model": name,
        "level": name.split("-")[1].removesuffix(".gguf"),
        "ppl": ppl,
        "accuracy_pct": 100 * 20 / ppl,
        "kld_mean": kld,
        "same_top_pct": None if kld is None else 99.0 - 100 * kld,
    }


@pytest.fixture
def folder(nano_llama: Path, tmp_path: Path) -> Path:
    """Four files of rising size; C is worse than the smaller B."""
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(RECORDED / "nano-llama.imatrix.gguf", folder / "nano.imatrix.gguf")
    for number, name in enumerate(("nano-A.gguf", "nano-B.gguf", "nano-C.gguf", REFERENCE)):
        shutil.copy(nano_llama, folder / name)
        with (folder / name).open("ab") as file:
            file.write(b"\0" * 2**20 * number)
    return folder


def report(folder: Path, divergence: bool) -> None:
    klds = (0.09, 0.01, 0.015) if divergence else (None, None, None)
    rows = [
        row(f"nano-{letter}.gguf", ppl, kld)
        for letter, ppl, kld in zip("ABC", (20.9, 20.1, 20.15), klds, strict=True)
    ]
    rows[2]["dominated_by"] = "nano-B.gguf"
    document = {
        "rows": [*rows, row(REFERENCE, 20.0, None)],
        "reference": REFERENCE,
        "calibration": ["calibration.txt"],
        "text": "held-out.txt",
        "ctx": 512,
        "chunks": 8,
        "commands": ["minitron quantize nano-F16.gguf all"],
        "versions": {"minitron": "1"},
        "sha256": {"nano-A.gguf": "ab" * 32},
    }
    (folder / "report.json").write_text(json.dumps(document))


@pytest.mark.parametrize("divergence", [True, False])
def test_make_card_advises_by_measurements(folder: Path, divergence: bool) -> None:
    report(folder, divergence)
    text = make_card(CardSettings(folder)).text
    # what was measured of them distinguishes files of one level
    choosing = text.split("## Which file")[1].split("## How")[0]
    assert "Close to the full model" in choosing
    assert "When memory is short" in choosing
    # a report that proves nothing of two files, such as A and B, says nothing of them
    assert choosing.count("is better and no larger") == 1
    assert ("divergence of 0.0100" in choosing) is divergence
    assert "calibrated on calibration.txt" in text
    assert "minitron quantize nano-F16.gguf all" in text
    assert "nano.imatrix.gguf](" not in text, "the matrix is not a model"


def test_make_card_claims_nothing_unmeasured(folder: Path) -> None:
    text = make_card(CardSettings(folder)).text
    assert "Nothing was measured" in text
    assert "PPL" not in text and "divergence" not in text


def test_make_card_writes_the_head_the_hub_reads(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(EXAMPLES / "nano-llama", source)
    head = "license: other\nlicense_name: open-model\nlicense_link: https://example.org/l\n"
    sections = (
        "# The model\nIntro.\n## Limitations\nIt errs.\n### In code\nMore so.\n"
        "## Training\nLong.\n## Intended use\nTests.\n"
    )
    (source / "README.md").write_text(f"---\n{head}language:\n- en\n---\n{sections}")
    folder = tmp_path / "out"
    folder.mkdir()
    convert(ConvertSettings(source, folder / "nano-F16.gguf", outtype="f16"))
    settings = CardSettings(folder, "nvidia/Some-Base", "me", source)
    text = make_card(settings).text
    data = ModelCard(text).data
    assert data.base_model == "nvidia/Some-Base"
    assert data["base_model_relation"] == "quantized" and data["quantized_by"] == "me"
    assert (data.license, data.license_name) == ("other", "open-model")
    assert data.language == ["en"] and data.library_name == "gguf"
    assert data.pipeline_tag == "text-generation" and "gguf" in data.tags
    assert "## Limitations\nIt errs.\n### In code\nMore so." in text
    assert "## Intended use\nTests." in text and "Long." not in text


def test_write_card_keeps_a_card_by_hand(minitron: Any, folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    fails(minitron("card", folder), 1, "--force")
    assert (folder / "README.md").read_text() == "mine"
    assert minitron("card", folder, "--force").code == 0
    # its own is made again
    assert write_card(CardSettings(folder)).path == folder / "README.md"


def test_card_refuses_bad_input(minitron: Any, folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(minitron("card", empty), 3, "no model")
    fails(minitron("card", folder, "--source-card", tmp_path / "none.md"), 3, "none.md")
    (folder / "report.json").write_text('{"rows": [1]}')
    fails(minitron("card", folder), 8, "report.json")


def test_make_card_shows_errors_beside_measures(folder: Path) -> None:
    report(folder, True)
    document = json.loads((folder / "report.json").read_text())
    document["rows"][1] |= {"ppl_error": 0.31, "kld_error": 0.0004}
    (folder / "report.json").write_text(json.dumps(document))
    line = next(
        line for line in make_card(CardSettings(folder)).text.splitlines() if "-B.g" in line
    )
    assert "20.1000 ± 0.31" in line and "0.010000 ± 0.0004" in line


def test_make_card_hashes_every_file(folder: Path) -> None:
    text = make_card(CardSettings(folder)).text
    for path in folder.glob("*.gguf"):
        assert f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" in text


def test_make_card_says_how_gptq_chose_codes(folder: Path, nano_llama: Path) -> None:
    file = open_gguf(nano_llama)
    keys = gptq_keys("sequential", ["calibration.txt"], 22016, 1024)
    specs = [TensorSpec(info.name, info.shape, info.type) for info in file.tensors]
    for name in ("nano-A.gguf", "nano-B.gguf"):
        with GgufWriter(folder / name, [*file.metadata.values(), *keys], specs) as writer:
            for info in file.tensors:
                writer.write(file.data(info))
    told = [line for line in make_card(CardSettings(folder)).text.splitlines() if "GPTQ" in line]
    assert told == [
        "The codes of nano-A.gguf, nano-B.gguf were chosen by sequential GPTQ, on 22,016 tokens of "
        "calibration.txt."
    ]


def test_make_card_says_how_to_use_the_files(folder: Path, nano_llama: Path) -> None:
    base = make_card(CardSettings(folder))
    assert "has no prompt format" in base.text and "llama-cli -m nano-C.gguf" in base.text
    template = "{{ bos_token }}[U]{{ messages[0].content }}[/U]"
    template += "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    for path in folder.glob("nano-*.gguf"):
        with_template(nano_llama, path, template)
    card = make_card(CardSettings(folder, repository="me/nano-GGUF"))
    assert "[U]{prompt}[/U]\n```" in card.text
    for line in ("llama-cli -hf me/nano-GGUF:", "ollama run hf.co/me/nano-GGUF:"):
        assert line in card.text


def test_names_asks_for_the_repository_in_a_card_of_ours(folder: Path) -> None:
    path = write_card(CardSettings(folder)).path
    assert not names(path, "me/nano") and names(path, "nano-A.gguf")
    path.write_text("# By hand\n")
    assert names(path, "me/nano")


def test_make_card_shows_the_reports_picture(folder: Path) -> None:
    assert "report.svg" not in make_card(CardSettings(folder)).text
    (folder / "report.svg").write_text("<svg/>")
    text = make_card(CardSettings(folder)).text
    assert text.index("## Files") < text.index("(./report.svg)") < text.index("## Which file")


def test_card_warns_of_what_is_missing(minitron: Any, folder: Path) -> None:
    ran = minitron("card", folder)
    assert ran.code == 0 and "names no license" in ran.err and "--base-model" in ran.err
    told = minitron("card", folder, "--base-model", "a/b", "--repo", "me/c", "--json").document
    assert len(told["warnings"]) == 1 and "license" in told["warnings"][0]


def test_write_card_keeps_what_was_written_into_it(folder: Path) -> None:
    settings = CardSettings(folder, base_model="a/b")
    path = write_card(settings).path
    text = path.read_text().replace("library_name: gguf", "library_name: gguf\nlicense: mit")
    own = "## My notes\n\nRead me.\n\n```sh\n## not a heading\n```"
    path.write_text(text.replace("## How to use", f"{own}\n\n## How to use"))
    again = write_card(CardSettings(folder, base_model="a/c"))
    data = ModelCard(again.text).data
    assert (data.license, data.base_model) == ("mit", "a/c")
    assert again.text.count(own) == 1 and again.text.count("## Files") == 1
    assert write_card(CardSettings(folder)).text == again.text
