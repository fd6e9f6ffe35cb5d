"""Vocabularies that cannot spell every text are noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_convert.vocab.byte_tokens import byte_alphabet, note_missing_bytes
from minitron_convert.vocab.tokens import TokenType, Vocabulary


def vocabulary(model: str, missing: set[int]) -> Vocabulary:
    names = byte_alphabet() if model == "gpt2" else [f"<0x{byte:02X}>" for byte in range(256)]
    kept = [name.encode() for byte, name in enumerate(names) if byte not in missing]
    kind = TokenType.NORMAL if model == "gpt2" else TokenType.BYTE
    return Vocabulary(model, "default", kept, [int(kind)] * len(kept))


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@given(missing=st.sets(st.integers(0, 255)))
def test_note_missing_bytes_counts_those_that_texts_have(model: str, missing: set[int]) -> None:
    found = vocabulary(model, missing)
    note_missing_bytes(found)
    lost = {byte for byte in missing if byte < 0x80 or 0x80 <= byte < 0xC0 or 0xC2 <= byte < 0xF5}
    assert bool(found.notes) == bool(lost)
    if lost:
        assert f"{243 - len(lost) or 'none'} of the 243 single bytes" in found.notes[0]


def test_note_missing_bytes_needs_the_tokens_to_be_bytes() -> None:
    found = vocabulary("llama", set())
    found.types = [int(TokenType.NORMAL)] * 256
    note_missing_bytes(found)
    assert "none of the 243" in found.notes[0]


def test_byte_alphabet_is_gpt2s() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert (alphabet[ord("a")], alphabet[ord(" ")], alphabet[ord("\n")]) == ("a", "Ġ", "Ċ")
