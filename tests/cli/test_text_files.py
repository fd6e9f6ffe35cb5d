"""Files as editors and shells of any system write them: byte order marks, odd bytes, booleans."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES, fails
from minitron_cli.generation.chatting import read_messages
from minitron_cli.options.sampling import SamplingOptions
from minitron_cli.pipeline.job_file import load_jobs
from minitron_convert.checkpoint.json_files import read_object, read_text
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import NotFound, Usage
from minitron_core.gguf import open_gguf
from minitron_quant import chunking
from minitron_quant.tasks.data_files import is_json, read_lines, read_records, read_rows

MARKS = {"utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE}


@pytest.fixture(params=MARKS)
def marked(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Writes a text with a byte order mark; returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "marked.txt"
        path.write_bytes(MARKS[request.param] + text.encode(request.param))
        return path

    return write


def test_texts_prompts_and_data_are_read_behind_a_mark(marked: Any) -> None:
    assert chunking.read_text(marked("Größe\n")) == "Größe"
    assert read_lines(marked("a\nb\n")) == ["a", "b"]
    assert [row.cells for row in read_rows(marked("a,b\n"))] == [["a", "b"]]
    path = marked('{"x": 1}\n{"x": 2}\n')
    assert is_json(path) and [record.values["x"] for record in read_records(path)] == [1, 2]


def test_settings_are_read_behind_a_mark(marked: Any) -> None:
    assert read_object(marked('{"x": 1}')) == {"x": 1}
    assert read_text(marked("{{ messages }}\r\n")) == "{{ messages }}\n"
    schema = '{"type": "integer"}'
    assert SamplingOptions(json_schema=marked(schema)).given()["json_schema"] == schema
    grammar = 'root ::= "a"'
    assert SamplingOptions(grammar=marked(grammar)).given()["grammar"] == grammar
    said = [{"role": "user", "content": "Größe"}]
    assert read_messages(marked(json.dumps({"messages": said}))) == said
    (job,) = load_jobs(marked('[model]\nsource = "x/y"\n'))
    assert job.model.source == "x/y"


def test_generate_reads_files_behind_a_mark(minitron: Any, short_llama: Path, marked: Any) -> None:
    words = ("-n", "3", "--temp", "0", "--json")
    plain = minitron("generate", short_llama, "The old", *words).document
    found = minitron("generate", short_llama, "-f", marked("The old"), *words).document
    assert (found["text"], found["prompt"]) == (plain["text"], "The old")
    piped = minitron("generate", short_llama, *words, stdin="\ufeffThe old").document
    assert piped["prompt"] == "The old"


@pytest.mark.parametrize("data", [b"a\xff", b"a\xf7\xbf\xbf\xbf", b"\xed\xa0\x80", b"\xc3"])
def test_generate_replaces_what_is_no_utf8(
    minitron: Any, short_llama: Path, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(data)
    ran = minitron("generate", short_llama, "-f", path, "-n", "2", "--json")
    assert ran.code == 0, ran.err
    assert "\ufffd" in ran.document["prompt"]
    assert ran.out.encode() and "\\ud" not in ran.out.lower()


def test_texts_that_are_git_lfs_pointers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wiki.txt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(NotFound, match="Git LFS pointer"):
        chunking.read_text(path)


def test_models_that_are_git_lfs_pointers_are_refused(minitron: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    for words in (("inspect", path), ("generate", path, "x"), ("quantize", path, "Q4_0")):
        fails(minitron(*words), 3, "model.gguf is a Git LFS pointer", "git lfs pull")


NUMBERS = [
    ("calibration", "chunks"),
    ("calibration", "ctx"),
    ("measure", "ctx"),
    ("measure", "chunks"),
    ("tasks", "limit"),
    ("speed", "repetitions"),
]


@pytest.mark.parametrize(("section", "key"), NUMBERS)
@pytest.mark.parametrize("value", ["true", "false"])
def test_job_files_take_no_boolean_for_a_number(
    tmp_path: Path, section: str, key: str, value: str
) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f'[model]\nsource = "x/y"\n[{section}]\n{key} = {value}\n')
    with pytest.raises(Usage, match=f"must be a number from 1 on, not {value}"):
        load_jobs(path)


def test_convert_leaves_out_what_is_no_number(tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    folder.mkdir()
    for path in (EXAMPLES / "nano-llama").iterdir():
        (folder / path.name).symlink_to(path.resolve())
    settings = {"temperature": False, "top_k": True, "top_p": 0.5, "min_p": "hot"}
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    made = convert(ConvertSettings(folder, tmp_path / "m.gguf", vocab_only=True))
    file = open_gguf(made.paths[0])
    assert "general.sampling.temp" not in file.metadata
    assert "general.sampling.top_k" not in file.metadata
    assert file.get("general.sampling.top_p") == 0.5
    assert sum("cannot be" in note for note in made.notes) == 3
