"""Tokenizing never ends the process, and long matches change no token."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.pretokenizers import PRE_TOKENIZERS, RUNS, with_pre_tokenizer
from helpers.support import EXAMPLES, with_entry
from helpers.tiny_gguf import write_tiny
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import OutOfResources, Unsupported
from minitron_core.gguf import ValueType, open_gguf
from minitron_engine.llama import tokenization
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model

LONG = 100_000


def ids(model: Model, text: str) -> list[int]:
    return model.tokenize(text, add_special=True, parse_special=True).tolist()


@pytest.fixture(scope="module")
def tekken(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """nano-llama with Mistral-NeMo's pre-tokenizer, which is a std::regex."""
    path = tmp_path_factory.mktemp("tekken") / "tekken.gguf"
    with_entry(nano_llama, path, "tokenizer.ggml.pre", ValueType.STRING, "tekken")
    with open_model(ModelSettings(path, vocab_only=True)) as model:
        yield model


def test_tokenizer_refuses_text_without_a_vocabulary(tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf")
    with open_model(ModelSettings(tiny)) as model, pytest.raises(Unsupported, match="vocabulary"):
        ids(model, "text")


@pytest.mark.parametrize("part", ["=", " ", "A", "a", "\n", "日", "😀", "/\n", "\u3000", "\x01"])
def test_tokenizer_survives_a_long_run(tekken: Model, part: str) -> None:
    text = "A table\n" + part * (LONG // len(part)) + "\nend"
    spelled = b"".join(map(tekken.piece, ids(tekken, text)[tekken.add_bos :]))
    assert spelled.decode() == text


def test_tokenizer_gives_the_same_ids_on_any_stack(
    tekken: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "The old house, 1234 stairs.\n\n  Über-\tall   ===== ÉTÉ\n" * 50
    usual = ids(tekken, text)
    monkeypatch.setattr(tokenization, "_SHORT_MATCH", 0)
    assert ids(tekken, text) == usual


def test_tokenizer_without_room_for_a_stack_says_so(
    tekken: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "_STACK_PER_BYTE", 1 << 40)
    with pytest.raises(OutOfResources, match="of stack"):
        ids(tekken, "=" * LONG)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano-llama without weights."""
    path = tmp_path_factory.mktemp("vocabulary") / "nano.gguf"
    convert(ConvertSettings(EXAMPLES / "nano-llama", path, vocab_only=True))
    return path


@contextmanager
def pre_tokenizing(vocabulary: Path, folder: Path, name: str) -> Iterator[Model]:
    path = with_pre_tokenizer(vocabulary, folder / f"{name}.gguf", name)
    with open_model(ModelSettings(path, vocab_only=True)) as model:
        yield model


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_tokenizer_takes_every_kind_of_character(
    name: str, vocabulary: Path, tmp_path: Path
) -> None:
    kinds = [period * 50 for period in RUNS.values() if name != "whitespace" or " " not in period]
    with pre_tokenizing(vocabulary, tmp_path, name) as model:
        assert len(ids(model, "\n1".join(kinds))) > len(kinds)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("superbpe", "1" * LONG, "digits"),
        ("deepseek-llm", f"a{' ' * LONG}1", "blanks"),
        ("deepseek-llm", f"\u3000{' ' * LONG}\u65e5", "blanks"),
        ("whitespace", "two  words", "whitespace"),
    ],
)
def test_tokenizer_refuses_what_llama_cpp_cannot_end(
    name: str, text: str, what: str, vocabulary: Path, tmp_path: Path
) -> None:
    with (
        pre_tokenizing(vocabulary, tmp_path, name) as model,
        pytest.raises(Unsupported, match=what),
    ):
        ids(model, text)


@pytest.mark.parametrize("text", [" " * LONG, f"{' ' * LONG}end", f"{' ' * LONG}\n1"])
def test_tokenizer_takes_blanks_that_end_a_line(
    text: str, vocabulary: Path, tmp_path: Path
) -> None:
    with pre_tokenizing(vocabulary, tmp_path, "deepseek-llm") as model:
        spelled = b"".join(map(model.piece, ids(model, text)[model.add_bos :]))
        assert spelled.decode() == text


PIECES = {  # and how many U+FFFD take their place
    **dict.fromkeys((b"a", b" ", "é".encode(), "日".encode(), "😀".encode()), 0),
    **dict.fromkeys((b"\xf4\x90\x80\x80", b"\xf7\xbf\xbf\xbf"), 4),
    **dict.fromkeys((b"\xff", b"\x80"), 1),
}


@given(st.lists(st.sampled_from(list(PIECES))))
def test_tokenizer_replaces_bytes_that_are_no_character(tekken: Model, parts: list[bytes]) -> None:
    text = b"".join(parts).decode(errors="surrogateescape")
    replaced = b"".join("\ufffd".encode() * PIECES[part] or part for part in parts)
    assert ids(tekken, text) == ids(tekken, replaced.decode())


def test_tokenizer_keeps_all_bytes_where_each_has_a_token(nano_nemotron: Path) -> None:
    data = b"a\xf7\xbf\xbf\xbfb"
    with open_model(ModelSettings(nano_nemotron, vocab_only=True)) as model:
        found = ids(model, data.decode(errors="surrogateescape"))
        assert b"".join(map(model.piece, found)).endswith(data)


def test_tokenizer_replaces_lone_surrogates(tekken: Model) -> None:
    assert ids(tekken, "a\ud800b") == ids(tekken, "a\ufffdb")


@pytest.fixture(scope="module")
def no_bytes(nano_nemotron: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """nano-nemotron whose byte tokens are called something else."""
    tokens = open_gguf(nano_nemotron).metadata["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, list)
    renamed = [re.sub(r"^<0x(..)>$", r"<_x\1>", token) for token in tokens]
    path = tmp_path_factory.mktemp("no-bytes") / "no-bytes.gguf"
    key = "tokenizer.ggml.tokens"
    with_entry(nano_nemotron, path, key, ValueType.ARRAY, renamed)
    with open_model(ModelSettings(path, vocab_only=True)) as model:
        yield model


@given(st.text(max_size=20))
def test_tokenizer_without_byte_tokens_refuses_or_answers(no_bytes: Model, text: str) -> None:
    try:
        found = ids(no_bytes, text)
    except Unsupported as error:
        assert "cannot spell" in str(error)
    else:
        assert all(0 <= token < no_bytes.n_vocab for token in found)


def test_tokenizer_without_byte_tokens_reads_what_it_can_spell(
    no_bytes: Model, nano_nemotron: Path
) -> None:
    text = "The old house stood"
    with open_model(ModelSettings(nano_nemotron, vocab_only=True)) as whole:
        assert ids(no_bytes, text) == ids(whole, text)
    with pytest.raises(Unsupported, match="日"):
        ids(no_bytes, "Tokyo: 日")


def test_tokenizer_never_ends_a_prompt(nano_nemotron: Path, tmp_path: Path) -> None:
    path = tmp_path / "with-eos.gguf"
    key = "tokenizer.ggml.add_eos_token"
    with_entry(nano_nemotron, path, key, ValueType.BOOL, True)
    with (
        open_model(ModelSettings(nano_nemotron, vocab_only=True)) as plain,
        open_model(ModelSettings(path, vocab_only=True)) as ending,
    ):
        assert ending.add_eos and not plain.add_eos
        for text in ("The old house", ""):
            assert ids(ending, text) == ids(plain, text)
