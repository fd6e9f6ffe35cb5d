"""What damaged inputs have broken once, each as the smallest input that did."""

import bz2
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardening.fuzz import commands, seeds
from hardening.fuzz.seeds_text import JOB
from hardening.fuzz.targets import TARGETS
from helpers.support import RECORDED, fails
from minitron_cli.errors import explain
from minitron_core.atomic_files import write_whole
from minitron_core.errors import MinitronError
from minitron_core.gguf import F32, GgufWriter, KeyValue, TensorSpec, ValueType
from minitron_engine.generation.constraint import compile_schema
from minitron_quant.inspect.description import describe
from minitron_quant.quantize.importance import load_importance


def header(**changes: Any) -> bytes:
    """A safetensors file of one tensor, described with changes."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    text = json.dumps({"a": entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


def index(name: str) -> bytes:
    """An index that names a file."""
    return json.dumps({"weight_map": {"a": name}}).encode()


def config(**changes: Any) -> bytes:
    """A sound config with changes."""
    return json.dumps(seeds.config("llama-tied") | changes).encode()


def tokenizer(**changes: Any) -> bytes:
    """A SentencePiece model as tokenizer.json, with changes."""
    document = json.loads(seeds.tokenizers()[2])
    document["model"] |= changes
    return json.dumps(document).encode()


def archive(change: Callable[[zipfile.ZipFile], object]) -> bytes:
    """A torch archive with its directory changed when it is written."""
    out = io.BytesIO(seeds.torch_archives()[0])
    with zipfile.ZipFile(out, "a") as opened:
        change(opened)
        opened.writestr("model/more", b"")
    return out.getvalue()


def entry(opened: zipfile.ZipFile, name: str, **values: int) -> None:
    """Change what the directory says of an entry."""
    for key, value in values.items():
        setattr(opened.getinfo(f"model/{name}"), key, value)


def shapes(shape: object) -> bytes:
    """A torch archive of one tensor of this shape."""
    found = seeds.tensor("FloatStorage", "0", (2, 3))
    state = seeds.pickled(
        {"a": seeds.Reduce(found.function, (found.arguments[0], 0, shape, (), 0, {}))}
    )
    return seeds.written(lambda path: seeds.write_torch(path, state, {"0": bytes(24)}))


def counts(value: float) -> bytes:
    """An importance matrix with this count."""
    keys = [
        KeyValue.of("imatrix.datasets", ValueType.ARRAY, ["t"]),
        KeyValue.of("imatrix.chunk_count", ValueType.UINT32, 1),
        KeyValue.of("imatrix.chunk_size", ValueType.UINT32, 8),
    ]
    specs = [TensorSpec("w.in_sum2", (2,), F32), TensorSpec("w.counts", (1,), F32)]

    def write(path: Path) -> None:
        with GgufWriter(path, keys, specs) as writer:
            writer.write(bytes(8))
            writer.write(struct.pack("<f", value))

    return seeds.written(write)


REFUSED: dict[str, tuple[str, bytes]] = {
    "a data type that is a list": ("safetensors", header(dtype=[])),
    "more dimensions than numpy has": (
        "safetensors",
        header(shape=[1] * 99, data_offsets=[0, 4]),
    ),
    "a file name with a NUL": ("index.json", index("a\0b")),
    "a file name that is not Unicode": ("index.json", index("\ud800")),
    "a file name that is too long": ("index.json", index("y" * 5000)),
    "two thousand million layers": ("config.json", config(num_hidden_layers=2**31 - 1)),
    "two thousand million tokens": ("config.json", config(vocab_size=2**31 - 1)),
    "a shape that is not a tuple": ("torch .bin", shapes(True)),
    "a pickle that says it is larger than its file": (
        "torch .bin",
        archive(lambda opened: entry(opened, "data.pkl", compress_size=2**31, file_size=2**20)),
    ),
    "a directory that points before the file": (
        "torch .bin",
        seeds.torch_archives()[0][:-6] + b"\xff\xff\xff\x00\x00\x00",
    ),
    "a byte order that unpacks to a gigabyte": (
        "torch .bin",
        archive(lambda opened: entry(opened, "byteorder", compress_type=zipfile.ZIP_DEFLATED)),
    ),
    "a sensitivity nested without end": ("sensitivity file", b"[" * 100_000),
    "a sensitivity with an endless number": (
        "sensitivity file",
        seeds.sensitivities()[0].replace(b'"ctx": 512', b'"ctx": 1e999'),
    ),
    "a report nested without end": ("report of a run", b"[" * 100_000),
    "a report whose perplexity is a text": (
        "report of a run",
        b'{"rows": [{"model": 1, "level": "F16", "ppl": "x", "accuracy_pct": 1, "kld_mean": 1}]}',
    ),
    "a conversation nested without end": ("saved conversation", b"[" * 100_000),
    "a sensitivity that is not text": ("sensitivity file", b"\xff\xfe\x00"),
    "counts beyond all numbers": ("imatrix GGUF", counts(1e30)),
    "a job with a number of many digits": ("job file", b"[model]\nsource = " + b"9" * 5000),
    "a job nested without end": ("job file", b"a = " + b"[" * 100_000),
    "a job with an endless size": ("job file", JOB.replace(b"1.5G", b"9" * 400)),
    "a job whose source is a long name": ("job file", JOB.replace(b"nano-llama", b"y" * 5000)),
    "questions that unpack to more than memory": (
        "compressed data",
        bz2.compress(bytes(65 << 20)),
    ),
    "half of a packed file": ("compressed data", bz2.compress(bytes(1000))[:-9]),
    "a rule repeated from many to few times": ("grammar", b'root ::= "a"{11,3}'),
    "a rule that a replaced one names": ("grammar", b'root ::= other\nroot ::= "a"'),
    "half of a token's number": ("grammar", b"root ::= <[[5]>"),
    "a token's number beyond all": ("grammar", b"root ::= <[99999999999]>"),
    "a repetition of six thousand digits": ("grammar", b'root ::= "a"{0,' + b"2" * 6000 + b"}"),
    "nothing at all two thousand times": ("grammar", b'root ::= "a"*{0,2000}'),
    "nothing at all, by another name": ("grammar", b'root ::= (b){0,900}\nb ::= "a"?'),
    "an item repeated three thousand times": ("grammar", b'root ::= "a"' + b"+" * 3000),
    "a piece whose text is a number": ("tokenizer.model", b"\n\x06\x08\x89\xde\x8d\xff\x15"),
    "a question that is a number of many digits": (
        "hellaswag json",
        b'{"ctx": ' + b"9" * 6000 + b"}",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_inputs_found_by_fuzzing_are_refused(name: str, tmp_path: Path) -> None:
    target, data = REFUSED[name]
    with pytest.raises((MinitronError, MinitronError)) as caught:
        TARGETS[target].prepare(tmp_path)(data)
    failure = explain(caught.value)
    assert failure is not None and failure.exit_code in (2, 4, 8)
    assert failure.message.isprintable() and len(failure.message) <= 1200


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^a}$"},
        {"type": "string", "pattern": "^a]$"},
        {"type": "array", "items": {"type": "null"}, "minItems": 10**12},
    ],
)
def test_compile_schema_ends(schema: object) -> None:
    assert compile_schema(json.dumps(schema))


NUMBERS = {
    "rope.dimension_count": (32, 15, 0),
    "block_count": (0, 513, 2**32 - 1),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in NUMBERS.items() for value in values]
)
def test_open_model_files_refuses_numbers_that_abort_llama_cpp(
    key: str, value: int, minitron: Any, tmp_path: Path
) -> None:
    path, data = tmp_path / "m.gguf", commands.model()
    name = f"llama.{key}".encode()
    at = data.index(name) + len(name) + 4
    path.write_bytes(data[:at] + struct.pack("<I", value) + data[at + 4 :])
    fails(minitron("generate", path, "The", "-n", "1"), 8, "damaged")


def test_library_loads_one_copy_of_ggml() -> None:
    # what is called when it aborts would else be set in a copy that libllama does not use
    program = (
        "from minitron_cli import main; from minitron_engine.llama import devices, library;"
        "from minitron_engine.process import aborts;"
        "aborts.on_abort(main._leave); devices.start();"
        "from minitron_engine.llama.binding import api;"
        "loaded = open('/proc/self/maps').read();"
        "names = {l.split('/')[-1] for l in loaded.splitlines() if 'libggml-base' in l};"
        "assert len(names) == 1, names"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.parametrize("unknown", [{}, [1], 5])
def test_convert_takes_an_unknown_token_that_is_not_text(unknown: object, tmp_path: Path) -> None:
    TARGETS["tokenizer.json"].prepare(tmp_path)(tokenizer(unk_token=unknown))


def test_describe_takes_nested_arrays(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(seeds.ggufs()[0])
    assert describe(path, with_tensors=True)["metadata"]["a.nested"] == [[0], [0]]


def test_printable_hides_control_characters(minitron: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    entry = KeyValue.of("general.name", ValueType.STRING, b"\x1b[2J\x07\xff")
    with GgufWriter(path, [entry], []):
        pass
    for words in ([], ["--json"]):
        ran = minitron("inspect", path, *words)
        assert ran.code == 0, ran.err
        assert "\x1b" not in ran.out + ran.err and "\x07" not in ran.out + ran.err
    path.write_bytes(index("\x1b[2J\n" + "long" * 1000))
    ran = minitron("convert", path)
    assert ran.code == 3 and "\x1b" not in ran.err


def test_main_shows_names_that_are_not_unicode(
    minitron: Any, nano_nemotron: Path, tmp_path: Path
) -> None:
    model = tmp_path / os.fsdecode(b"\x80mall.gguf")
    model.write_bytes(nano_nemotron.read_bytes())
    assert minitron("generate", model, "A", "-n", 2).code == 0
    found = (RECORDED / "nano-llama.imatrix.gguf").read_bytes()
    assert found.count(b"calibration.txt") == 1
    matrix = tmp_path / "imatrix.gguf"
    matrix.write_bytes(found.replace(b"calibration.txt", b"\x80alibration.txt"))
    keys = {key.key: key.raw for key in load_importance(matrix, (), ()).keys}
    assert keys["quantize.imatrix.dataset"].endswith(b"\x80alibration.txt")
    write_whole(tmp_path / "card.md", "\udc80mall")
    assert (tmp_path / "card.md").read_text() == "\\udc80mall"
