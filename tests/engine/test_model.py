"""Loading, tokens, logits, devices and the log."""

import ctypes
import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from helpers.instruction_sets import ROUNDING
from helpers.support import EXAMPLES, recorded
from minitron_core.errors import Damaged, MinitronError, NotFound, OutOfResources
from minitron_engine import loading
from minitron_engine.llama import library, log
from minitron_engine.llama import model as model_module
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import Context, Logits, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.llama.weights import find_weights
from minitron_engine.loading import open_model
from minitron_quant.chunking import read_text


@pytest.mark.parametrize("name", ["nano-llama", "nano-nemotron"])
@pytest.mark.parametrize("text", ["calibration.txt", "held-out.txt"])
def test_tokenize_equals_llama_tokenize(
    name: str, text: str, nano_llama: Path, nano_nemotron: Path
) -> None:
    path = nano_llama if name == "nano-llama" else nano_nemotron
    expected = recorded("tokenize.json")["models"][name]["texts"][text]
    with open_model(ModelSettings(path, vocab_only=True)) as model:
        tokens = model.tokenize(read_text(EXAMPLES / text), add_special=True, parse_special=False)
    assert len(tokens) == expected["count"]
    assert hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest() == expected["sha256"]


def test_piece_round_trips_text(nano_llama: Path) -> None:
    text = "Ein Käfer — 𝄞 and    spaces\n\n\ttabs 12345"
    with open_model(ModelSettings(nano_llama, vocab_only=True)) as model:
        tokens = model.tokenize(text, add_special=False, parse_special=False)
        assert b"".join(model.piece(int(token)) for token in tokens).decode() == text


def test_piece_longer_than_its_first_room_is_whole(
    nano_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_model(ModelSettings(nano_llama, vocab_only=True)) as model:
        whole = [model.piece(token) for token in range(300, 400)]
        monkeypatch.setattr(model_module, "_Piece", ctypes.c_char * 2)
        monkeypatch.setattr(model_module, "_PIECE_BYTES", 2)
        assert max(map(len, whole)) > 2
        assert [model.piece(token) for token in range(300, 400)] == whole


def test_open_model_refuses_missing_and_damaged_files(tmp_path: Path, nano_llama: Path) -> None:
    with pytest.raises(NotFound), open_model(ModelSettings(tmp_path / "none.gguf")):
        pass
    cut = tmp_path / "cut.gguf"
    shutil.copy(nano_llama, cut)
    with cut.open("r+b") as file:
        file.truncate(nano_llama.stat().st_size // 2)
    with pytest.raises(Damaged, match=r"cut\.gguf"), open_model(ModelSettings(cut)):
        pass


def test_open_model_writable_needs_memory_of_its_own(
    nano_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda: 1 << 20)
    with (
        pytest.raises(OutOfResources, match=r"takes 0\.0 GiB of memory of its own here"),
        open_model(ModelSettings(nano_llama, 0, writable=True)),
    ):
        pass
    with open_model(ModelSettings(nano_llama, 0, replaceable=True)) as mapped:
        assert mapped.n_vocab


def test_weights_replaced_on_the_cpu_leave_the_mapped_file_alone(nano_llama: Path) -> None:
    with open_model(ModelSettings(nano_llama, 0, replaceable=True)) as model:
        weights, name = find_weights(model), "blk.0.ffn_up.weight"
        zeros = np.zeros(256 * 768 * 2, np.uint8)
        with open_context(model, ContextSettings(n_ctx=32, n_batch=32)) as context:
            before = one_token(context)
            with weights.replaced(name, zeros, zeros):
                assert not np.array_equal(one_token(context), before)
            np.testing.assert_array_equal(one_token(context), before)
            with (
                pytest.raises(MinitronError, match="393216 bytes in memory, not 393215"),
                weights.replaced(name, zeros[1:], zeros),
            ):
                pass


def one_token(context: Context) -> Logits:
    """The logits after one token."""
    context.clear()
    batch = Batch(1)
    batch.add(np.zeros(1, np.int32), 0, 0, np.ones(1, np.bool_))
    context.decode(batch)
    return context.logits(1).copy()


def test_open_model_stops_when_progress_raises(nano_llama: Path) -> None:
    def interrupt(_share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_model(ModelSettings(nano_llama), interrupt):
        pass


def test_decode_gives_logits_of_marked_tokens(nano_llama: Path) -> None:
    with (
        open_model(ModelSettings(nano_llama)) as model,
        open_context(model, ContextSettings(n_ctx=512, n_batch=64, n_seq=2)) as context,
    ):
        tokens = model.tokenize("It was a dark night", add_special=True, parse_special=False)
        every = np.ones(len(tokens), dtype=np.bool_)
        last = np.arange(len(tokens)) == len(tokens) - 1
        batch = Batch(64)
        batch.add(tokens, 0, 0, every)
        context.decode(batch)
        alone = context.logits(batch.outputs)[-1].copy()
        context.clear()
        batch.clear()
        batch.add(tokens, 0, 0, last)
        batch.add(tokens[::-1].copy(), 0, 1, last)
        assert batch.outputs == 2
        context.decode(batch)
        together = context.logits(2)
        assert together.shape == (2, model.n_vocab)
        np.testing.assert_allclose(together[0], alone, rtol=0, atol=ROUNDING)
        assert not np.allclose(together[0], together[1], atol=0.5)


@pytest.mark.parametrize("name", ["nano_llama", "nano_nemotron"])
def test_open_model_shares_another_vocabulary(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    with (
        open_model(ModelSettings(path)) as first,
        open_model(ModelSettings(path), vocabulary_of=first) as beside,
    ):
        text = "It was a <s>dark night"
        tokens = first.tokenize(text, add_special=True, parse_special=True)
        again = beside.tokenize(text, add_special=True, parse_special=True)
        assert again.tolist() == tokens.tolist()
        assert (beside.n_vocab, beside.bos, beside.add_bos) == (
            first.n_vocab,
            first.bos,
            first.add_bos,
        )
        logits = [_last_logits(model, tokens) for model in (first, beside)]
    assert (logits[0] == logits[1]).all()


def _last_logits(model: Model, tokens: Tokens) -> Logits:
    with open_context(model, ContextSettings(n_ctx=64, n_batch=64)) as context:
        batch = Batch(64)
        batch.add(tokens, 0, 0, np.arange(len(tokens)) == len(tokens) - 1)
        context.decode(batch)
        return context.logits(1).copy()


def test_check_layout_refuses_another_library() -> None:
    assert version("llama_cpp_python") == library.PINNED_BINDING
    broken = type("Library", (), {"ggml_tensor_overhead": lambda _: 400})()
    with pytest.raises(MinitronError, match="another layout"):
        library.check_layout(broken)


def test_decode_of_rows_is_exact() -> None:
    values = np.arange(-64, 64, dtype=np.float16)
    decoded = np.empty(128, dtype=np.float32)
    assert library.decode(1, values.ctypes.data, decoded.ctypes.data, 128)
    np.testing.assert_array_equal(decoded, values.astype(np.float32))
    assert not library.decode(24, values.ctypes.data, decoded.ctypes.data, 128)


def test_log_joins_the_pieces_of_a_line() -> None:
    with log.capture() as lines:
        for level, text in ((2, b"one "), (5, b"line\nand "), (5, b"another\n")):
            log._callback(level, text, ctypes.c_void_p())
    assert lines == ["one line", "and another"]
    log._callback(4, b"it broke\n", ctypes.c_void_p())
    assert log.last_error() == "it broke"
