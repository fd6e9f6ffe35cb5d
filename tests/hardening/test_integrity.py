"""A flipped bit, wherever it is, is noticed: by the checks, and by whoever goes on.

In sources, outputs, and in all that a job writes down to go on: journals, states, manifests.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.support import EXAMPLES, quantize
from helpers.tiny_gguf import write_tiny
from minitron_convert.convert import ConvertSettings, convert
from minitron_convert.verify import verify
from minitron_core.atomic_files import read_checksummed, write_checksummed
from minitron_core.errors import Damaged, MinitronError
from minitron_core.gguf import open_gguf
from minitron_core.progress import Event
from minitron_quant.imatrix.matrix import Entry
from minitron_quant.imatrix.state import Saved, StateFile
from minitron_quant.inspect.integrity import check_manifest
from minitron_quant.levels import parse_levels
from minitron_quant.perplexity.divergence import TokenScores
from minitron_quant.perplexity.state import ModelInfo, open_state
from minitron_quant.quantize import encode, level_files
from minitron_quant.quantize.prepare import QuantizeSettings, prepare
from minitron_quant.quantize.run import run

LEVELS = ("Q4_0", "Q8_0")
# few positions in the suite, many with make harden
FEW = settings(max_examples=3, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=150)
# a place in a file, as a share of its bits
place = st.floats(0, 1, exclude_max=True)
examples = pytest.mark.parametrize(
    "many", [False, pytest.param(True, marks=pytest.mark.harden)], ids=["few", "many"]
)


def flip(path: Path, share: float, start: int = 0) -> None:
    """Flip the bit at a share of the file's length from `start` on."""
    data = np.fromfile(path, np.uint8)
    bit = 8 * start + int(share * 8 * (len(data) - start))
    data[bit // 8] ^= 1 << bit % 8
    data.tofile(path)


def at_many_places(many: bool, check: Callable[[float], None]) -> None:
    """Try a property at drawn places."""
    tried = 0

    def count(share: float) -> None:
        nonlocal tried
        check(share)
        tried += 1

    (MANY if many else FEW)(given(place)(count))()
    if many:
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].partition(" ")[0]
        print(f"\nFLIPPED {test} {tried}")  # noqa: T201


@dataclass(frozen=True)
class Made:
    """A model, its levels beside it, and their bytes."""

    source: Path
    manifest: Path
    files: dict[str, bytes]

    def restore(self) -> None:
        for name, data in self.files.items():
            self.source.with_name(name).write_bytes(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    source = write_tiny(folder / "tiny-F16.gguf")
    quantize(source, folder, *LEVELS)
    manifest = folder / "tiny.manifest.json"
    return Made(source, manifest, {path.name: path.read_bytes() for path in folder.iterdir()})


def states(manifest: Path) -> dict[str, str]:
    return {each.name: each.state for each in check_manifest(manifest, lambda _: None)}


@examples
@pytest.mark.parametrize("name", ["tiny-F16.gguf", "tiny-Q4_0.gguf"])
def test_the_manifest_notices(many: bool, name: str, made: Made) -> None:
    def check(share: float) -> None:
        made.restore()
        flip(made.source.with_name(name), share)
        assert {n for n, state in states(made.manifest).items() if state != "ok"} == {name}

    at_many_places(many, check)


@examples
def test_a_manifest_notices_what_happens_to_itself(many: bool, made: Made) -> None:
    def check(share: float) -> None:
        made.restore()
        flip(made.manifest, share)
        with pytest.raises(Damaged):
            check_manifest(made.manifest, lambda _: None)
        with pytest.raises(Damaged):
            quantize(made.source, made.manifest.parent, *LEVELS)

    at_many_places(many, check)


@examples
@pytest.mark.parametrize("name", ["tiny-F16.gguf", "tiny-Q4_0.gguf"])
def test_quantize_again_notices(many: bool, name: str, made: Made) -> None:
    def check(share: float) -> None:
        made.restore()
        flip(made.source.with_name(name), share)
        with pytest.raises(Exception) as caught:
            quantize(made.source, made.manifest.parent, *LEVELS)
        # a damaged header has errors of its own
        assert getattr(caught.value, "exit_code", None) in (1, 4, 8)

    at_many_places(many, check)
    made.restore()
    assert all(
        result.kept for result in quantize(made.source, made.source.parent, *LEVELS).values()
    )


class Stop(KeyboardInterrupt):
    """Ctrl-C."""


@pytest.fixture(scope="module")
def unfinished(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an interrupted job leaves."""
    folder = tmp_path_factory.mktemp("unfinished")

    def listen(event: Event) -> None:
        if event.done > 0.7 * event.total:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "SLAB_ELEMENTS", 1 << 14)
        patch.setattr(level_files, "_COMMIT_SECONDS", 0.0)
        with pytest.raises(Stop):
            job = QuantizeSettings(made.source, tuple(parse_levels(LEVELS)), folder)
            list(run(prepare(job), listen))
    left = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(left) == 3  # the journal and two files under way
    return left


@examples
@pytest.mark.parametrize("kind", ["journal", "partial"])
def test_going_on_with_what_was_changed(
    many: bool, kind: str, made: Made, unfinished: dict[str, bytes], tmp_path: Path
) -> None:
    (name, *_) = sorted(name for name in unfinished if name.endswith(kind))

    def check(share: float) -> None:
        made.restore()
        folder = tmp_path / "out"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for each, data in unfinished.items():
            (folder / each).write_bytes(data)
        flip(folder / name, share)
        quantize(made.source, folder, *LEVELS)
        for level in LEVELS:
            assert (folder / f"tiny-{level}.gguf").read_bytes() == made.files[f"tiny-{level}.gguf"]

    at_many_places(many, check)


@examples
def test_sealed_files_notice(many: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    document = {"number": 1.5e-7, "text": "ö\n", "list": [1, {"a": None}], "true": True}
    write_checksummed(path, document)
    assert read_checksummed(path) == document
    data = path.read_bytes()

    def check(share: float) -> None:
        path.write_bytes(data)
        flip(path, share)
        with pytest.raises(ValueError):
            read_checksummed(path)

    at_many_places(many, check)


@examples
def test_an_unfinished_imatrix_notices(many: bool, tmp_path: Path) -> None:
    path = tmp_path / "state"
    sums = np.arange(64, dtype=np.float64).reshape(1, 64)
    saved = Saved(3, {"a.weight": Entry(sums, np.array([7]), None)}, [np.ones(5)])
    identity = {"model": ["x"], "--ctx": 64}
    state = StateFile(path, lambda: identity, every=1)
    state.save(saved)
    assert state.load("continue").chunks == 3
    data = path.read_bytes()

    def check(share: float) -> None:
        path.write_bytes(data)
        flip(path, share)
        with pytest.raises(MinitronError, match="cannot be read"):
            state.load("continue")
        assert state.load("if possible").chunks == 0

    at_many_places(many, check)


@examples
def test_measured_rows_notice(many: bool, tmp_path: Path) -> None:
    path, keys = tmp_path / "rows.sqlite", ("a" * 64, "b" * 64)
    rows = [TokenScores(np.arange(9.0) + i, np.ones(9), np.zeros(9, np.bool_)) for i in range(3)]
    with open_state(path) as state:
        for key in keys:
            state.load(key)
            state.set_info(key, ModelInfo("CPU", 3))
            state.put(key, 0, rows)
    data = path.read_bytes()

    def check(share: float) -> None:
        path.write_bytes(data)
        flip(path, share)
        try:
            with open_state(path) as state:
                for key in keys:
                    state.load(key)
                    # what is still known is what was measured
                    assert state.info(key) in (None, ModelInfo("CPU", 3))
                    for row, expected in zip(state.scores(key), rows, strict=False):
                        assert row.nll.tobytes() == expected.nll.tobytes()
                        assert row.kld.tobytes() == expected.kld.tobytes()
        except MinitronError:
            pass

    at_many_places(many, check)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of our own and its file, of its own type."""
    folder = tmp_path_factory.mktemp("converted")
    source = folder / "nano"
    shutil.copytree(EXAMPLES / "nano-nemotron", source)
    path = folder / "nano.gguf"
    convert(ConvertSettings(source, path))
    return source, path


@examples
@pytest.mark.parametrize("flipped", ["source", "output"])
def test_verify_notices(many: bool, flipped: str, converted: tuple[Path, Path]) -> None:
    """Any bit of any weight; names and comments in the headers are not the model."""
    source, model = converted
    path = model if flipped == "output" else source / "model.safetensors"
    data = path.read_bytes()
    start = open_gguf(path).data_offset if flipped == "output" else _safetensors_data(data)

    def check(share: float) -> None:
        path.write_bytes(data)
        flip(path, share, start)
        try:
            passed = verify(ConvertSettings(source), model).passed
        except MinitronError:
            passed = False
        assert not passed

    try:
        at_many_places(many, check)
    finally:
        path.write_bytes(data)
    assert verify(ConvertSettings(source), model).passed


def _safetensors_data(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def test_a_job_notices(minitron: Any, material: Any, tmp_path: Path) -> None:
    from hardening import workshop

    words = [str(word) for word in workshop.COMMANDS["run"].words(material, tmp_path / "job")]
    assert minitron(*words, "-q").code == 0
    whole = workshop.results(tmp_path / "job")
    outputs = [path for path in (tmp_path / "job").iterdir() if path.suffix == ".gguf"]
    states = [tmp_path / "job" / ".minitron-run.json"]
    assert len(outputs) == 4
    some = [path for path in outputs if "Q5_0" not in path.name and "imatrix" not in path.name]
    for path in (*some, *states):
        flip(path, 0.6)
        ran = minitron(*words, "--resume")
        assert ran.code == 0, (path, ran.err)
        assert workshop.results(tmp_path / "job") == whole, path
        if "F16" in path.name:
            assert "was changed since it was made" in ran.err
