"""Whether a vocabulary can spell every text: it needs a token for each byte that UTF-8 uses."""

from __future__ import annotations

from minitron_convert.vocab.tokens import TokenType, Vocabulary

# bytes that no UTF-8 text has
_NEVER = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
_SHOWN = frozenset((*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)))


def note_missing_bytes(vocabulary: Vocabulary) -> None:
    """Add a note where a vocabulary lacks tokens for single bytes."""
    if vocabulary.model == "gpt2":
        tokens = set(vocabulary.tokens)
        spelled = {byte for byte, token in enumerate(byte_alphabet()) if token.encode() in tokens}
        then = "llama.cpp drops characters that need the others"
    else:
        bytes_and_types = zip(vocabulary.tokens, vocabulary.types, strict=True)
        names = {token.upper() for token, kind in bytes_and_types if kind == TokenType.BYTE}
        spelled = {byte for byte in range(256) if b"<0X%02X>" % byte in names}
        then = "characters that it lacks cannot be read"
    used = frozenset(range(256)) - _NEVER
    if not used <= spelled:
        known = len(used & spelled)
        vocabulary.notes.append(
            f"the vocabulary has tokens for {known or 'none'} of the {len(used)} single bytes that "
            f"texts consist of: {then}"
        )


def byte_alphabet() -> list[str]:
    """The characters by which GPT-2's tokenizers write the bytes 0 to 255."""
    hidden = iter(range(256, 512))
    return [chr(byte if byte in _SHOWN else next(hidden)) for byte in range(256)]
