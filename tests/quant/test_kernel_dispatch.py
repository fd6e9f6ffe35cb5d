"""Which encoder does the work: kernels that prove themselves, and ggml's in every other case."""

import ctypes
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.kernels import build_hook, built_library
from helpers.support import ROOT, quantize
from minitron_core import kernels as library
from minitron_core.gguf import TYPE, TYPE_ID, row_bytes
from minitron_core.kernels import AVX2, AVX512, Kernels, load
from minitron_quant.kernels import encode, self_check
from minitron_quant.kernels.encode import KERNEL_TYPES, Encoder
from minitron_quant.kernels.self_check import by_ggml, sample
from minitron_quant.quantize.run import LevelResult

# of the types with a codebook one whose tables ggml builds at once
Q4_K, IQ3_XXS = TYPE_ID["q4_K"], TYPE_ID["iq3_xxs"]


def blocks_of(encoder: Encoder, ggml_type: int) -> NDArray[np.uint8]:
    values, importance = sample()
    blocks = np.zeros(len(values) * row_bytes(ggml_type, values.shape[1]), np.uint8)
    encoder.quantize_rows(ggml_type, values, blocks, importance)
    return blocks


def by_kernels(**replaced: Callable[..., int]) -> Kernels:
    """The compiled library with some functions replaced."""
    whole = built_library().library
    names = ("kernels_level", "kernels_set_codebook", "kernels_encode")
    functions = {name: getattr(whole, name) for name in names} | replaced
    return Kernels(cast("Any", SimpleNamespace(**functions)), AVX512, "")


def wrong_at(*levels: int) -> Kernels:
    """Kernels that give other bytes at some levels."""
    right = by_kernels().library.kernels_encode  # type: ignore[union-attr]
    widest = built_library().level

    def kernels_encode(level: int, ggml_type: int, x: int, y: int, *more: Any) -> int:
        left: int = right(min(level, widest), ggml_type, x, y, *more)
        if level in levels:
            ctypes.c_uint8.from_address(y).value ^= 1
        return left

    return by_kernels(kernels_encode=kernels_encode)


@pytest.mark.parametrize("name", ["q4_K", "iq3_xxs", "iq4_nl"])
def test_kernels_that_pass_encode(name: str) -> None:
    encoder, number = Encoder(built_library().loaded), TYPE_ID[name]
    values, importance = sample()
    assert np.array_equal(blocks_of(encoder, number), by_ggml(number, values, importance))
    assert encoder.level_of(number) == built_library().level


def test_every_kernel_passes_its_self_check() -> None:
    assert Encoder(built_library().loaded).failed() == []


@pytest.mark.parametrize("name", ["q4_K", "iq3_xxs", "iq3_s"])
@pytest.mark.parametrize(
    ("wrong", "left"), [((AVX512,), AVX2), ((AVX2, AVX512), 0)], ids=["widest", "all"]
)
def test_a_failed_self_check_falls_back_with_a_warning(
    name: str, wrong: tuple[int, ...], left: int, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, number = Encoder(wrong_at(*wrong)), TYPE_ID[name]
    values, importance = sample()
    with caplog.at_level(logging.INFO, "minitron.kernels"):
        for _ in range(2):
            assert np.array_equal(blocks_of(encoder, number), by_ggml(number, values, importance))
    assert encoder.level_of(number) == left
    assert len(caplog.records) == len(wrong)
    assert all(name in record.getMessage() for record in caplog.records)


def test_a_ggml_of_another_version_is_compared_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    self_check.recordings_hold.cache_clear()
    monkeypatch.setattr(self_check, "ggml_version", lambda: "1.2.3")
    encoded = []
    whole = self_check.by_ggml
    monkeypatch.setattr(self_check, "by_ggml", lambda *a: encoded.append(a[0]) or whole(*a))
    try:
        assert Encoder(built_library().loaded).level_of(TYPE_ID["iq3_xxs"])
        assert encoded == [TYPE_ID["iq3_xxs"]] * 2
    finally:
        self_check.recordings_hold.cache_clear()


def test_iq1_is_left_to_ggml_where_qsort_moves_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "_qsort_is_stable", lambda: False)
    assert Encoder(built_library().loaded).level_of(TYPE_ID["iq1_s"]) == 0


def test_a_type_is_checked_once_by_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    whole = encode.passes
    monkeypatch.setattr(encode, "passes", lambda *a: checked.append(a[0]) or whole(*a))
    encoder = Encoder(built_library().loaded)
    values, importance = sample()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: blocks_of(encoder, number), [IQ3_XXS, Q4_K] * 8))
    assert sorted(checked) == sorted([IQ3_XXS, Q4_K])
    for number, blocks in zip([IQ3_XXS, Q4_K] * 8, made, strict=True):
        assert np.array_equal(blocks, by_ggml(number, values, importance))


def test_types_without_a_kernel_are_ggmls() -> None:
    values, _ = sample()
    for name in ("tq2_0", "f16", "mxfp4"):
        number = TYPE_ID[name]
        assert number not in KERNEL_TYPES
        blocks = np.zeros(len(values) * row_bytes(number, values.shape[1]), np.uint8)
        Encoder(built_library().loaded).quantize_rows(number, values, blocks, None)
        assert np.array_equal(blocks, by_ggml(number, values, None)), name


def test_without_a_library_ggml_encodes() -> None:
    encoder = Encoder(Kernels(None, 0, "none"))
    values, importance = sample()
    assert encoder.level_of(Q4_K) == 0 and encoder.failed() == []
    assert np.array_equal(blocks_of(encoder, Q4_K), by_ggml(Q4_K, values, importance))


@pytest.fixture
def other_library(tmp_path: Path) -> Path:
    path = tmp_path / "libminitron_kernels.so"
    path.write_bytes(b"no library at all")
    return path


def test_loading_says_why_there_are_no_kernels(
    monkeypatch: pytest.MonkeyPatch, other_library: Path, tmp_path: Path
) -> None:
    assert "not built" in load(tmp_path / "missing.so").reason
    assert "cannot be loaded" in load(other_library).reason
    monkeypatch.setattr(library.ctypes, "CDLL", lambda _: SimpleNamespace())
    assert "cannot be loaded" in load(other_library).reason
    monkeypatch.setattr(library, "_declare", lambda _: None)
    old = SimpleNamespace(kernels_level=lambda: 0)
    monkeypatch.setattr(library.ctypes, "CDLL", lambda _: old)
    assert load(other_library).reason == "this processor has no AVX2"
    monkeypatch.setenv("MINITRON_NATIVE", "0")
    assert load(other_library) == Kernels(None, 0, "MINITRON_NATIVE=0")


@pytest.fixture
def in_use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path | None], None]]:
    """Makes a library, or none, that of this process."""

    def use(path: Path | None) -> None:
        monkeypatch.setattr(library, "LIBRARY", path)
        monkeypatch.setenv("MINITRON_NATIVE", "0" if path is None else "1")
        library._loaded.cache_clear()
        encode.encoder.cache_clear()

    yield use
    library._loaded.cache_clear()
    encode.encoder.cache_clear()


def test_levels_are_the_same_files_with_and_without_kernels(
    in_use: Callable[[Path | None], None], short_llama: Path, tmp_path: Path
) -> None:
    levels = ("Q4_K_M", "Q3_K_S", "IQ4_XS", "Q8_0", "Q4_0")
    hashes = []
    for path in (built_library().path, None):
        in_use(path)
        folder = tmp_path / str(path is None)
        made = quantize(short_llama, folder, *levels)
        hashes.append({name: result.sha256 for name, result in made.items()})
    assert hashes[0] == hashes[1] and len(hashes[0]) == len(levels)


def test_all_levels_come_from_the_kernels_where_they_are_built(
    llama_levels: dict[str, LevelResult],
) -> None:
    # the files of the suite, whose hashes are compared with llama-quantize's, are made with them
    if library.kernels().library is None:
        pytest.skip(library.kernels().reason)
    assert llama_levels and encode.encoder().failed() == []


def test_doctor_says_which_encoders_are_in_use(
    minitron: Any, in_use: Callable[[Path | None], None]
) -> None:
    in_use(built_library().path)
    name = library.INSTRUCTIONS[built_library().level]
    report = minitron("doctor", "--json").document["encoders"]
    assert report == {"instructions": name, "reason": "", "types_of_ggml": []}
    assert f"{name} kernels" in minitron("doctor").out
    in_use(None)
    assert minitron("doctor", "--json").document["encoders"]["reason"] == "MINITRON_NATIVE=0"
    assert "ggml's: MINITRON_NATIVE=0" in minitron("doctor").out


def test_verbose_quantize_says_which_encoders_are_in_use(
    minitron: Any, in_use: Callable[[Path | None], None], short_llama: Path, tmp_path: Path
) -> None:
    for path, said in ((built_library().path, "kernels"), (None, "ggml's: MINITRON_NATIVE=0")):
        in_use(path)
        ran = minitron("quantize", short_llama, "Q8_0", "-d", tmp_path, "--force", "-v")
        assert ran.code == 0, ran.err
        lines = [line for line in ran.err.splitlines() if line.startswith("encoders:")]
        assert len(lines) == 1 and said in lines[0]


def test_nothing_is_built_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hook, target = build_hook(), tmp_path / "library.so"
    target.write_bytes(b"of an earlier build")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not hook.build(ROOT, target) and not target.exists()
    assert "no compiler no-such-compiler" in capfd.readouterr().err
    monkeypatch.setenv("CXX", "false")
    assert not hook.build(ROOT, target)
    monkeypatch.setenv("MINITRON_NATIVE", "0")
    assert not hook.build(ROOT, target)
    assert "MINITRON_NATIVE=0" in capfd.readouterr().err
    monkeypatch.setenv("MINITRON_NATIVE", "1")
    with pytest.raises(RuntimeError, match="not built"):
        hook.build(ROOT, target)
    monkeypatch.setattr(hook.platform, "machine", lambda: "riscv64")
    with pytest.raises(RuntimeError, match="none for riscv64"):
        hook.build(ROOT, target)
    assert list(tmp_path.iterdir()) == []


def test_kernel_types_are_those_of_the_interface() -> None:
    values, blocks = np.zeros((1, 256), np.float32), np.zeros(512, np.uint8)
    whole = built_library().library
    assert whole is not None
    importance = np.ones(256, np.float32)
    supported = set()
    encoder = Encoder(built_library().loaded)
    for number in TYPE:
        encoder.level_of(number)  # sets codebooks
        pointers = values.ctypes.data, blocks.ctypes.data, 1, 256, importance.ctypes.data
        if whole.kernels_encode(AVX2, number, *pointers, None) == 0:
            supported.add(number)
    assert supported == KERNEL_TYPES
