"""Token ids: llama.cpp's tokenizer over our vocabularies against the models' own tokenizers."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sentencepiece
import tokenizers

from helpers.vocabulary import Tokenizer, convert_vocabulary
from minitron_convert.vocab import TokenType
from minitron_core.gguf import open_gguf

Encode = Callable[[str], list[int]]

# The strings with which llama.cpp tests its vocabularies, then text of other scripts and code.
TEXTS = [
    "ied 4 ½ months",
    "Äpfel",
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\t\n",
    "Hello world",
    " Hello world",
    "Hello World",
    " Hello World",
    " Hello World!",
    "Hello, world!",
    " Hello, world!",
    " this is 🦙.cpp",
    "w048 7tuijk dsdfhu",
    "нещо на Български",
    "កាន់តែពិសេសអាចខលចេញ",
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ (only emoji that has its own token)",
    "Hello",
    "  Hello",
    "    Hello\n    Hello",
    " (",
    "\n =",
    "' era",
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天\uff5e",
    "!!!!!!",
    *("3" * n for n in range(1, 10)),
    "Cửa Việt",
    " discards",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) ✅ 🦙 3 33 3333 3.3 3..3 3...3 "
    "កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天\uff5e ------======= нещо на Български ''''''```````"
    "\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll "
    "make it, 'D you like some tea? We'Ve a'lL",
    "def f(x):\n\treturn {'a': [1, 2], \"b\": x**2}  # done\r\n",
    "for (int i = 0; i < n; ++i) { a[i] += b->c; }",
    "▁▁ ▁a",
    "a\u00a0b\u2003c\u3000d",
    "e\u0301 é ﬁ ½ Ⅷ ǅ ß \u017f İI",
    "\u200b\u200d\ufeffx",
    "\x00\x01\x7f",
    "١٢٣٤ १२३४ 〇一二",
    "العربية עברית ไทย 日本語 한국어 Ελληνικά",
]


def reference(folder: Path) -> Encode:
    """The tokenizer that the model was trained with."""
    model = folder / "tokenizer.model"
    if model.is_file():
        pieces = sentencepiece.SentencePieceProcessor(str(model))
        return lambda text: list(pieces.encode(text))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    # llama.cpp does not normalize text before BPE: a note says so where the tokenizer does
    if folder.name == "smollm2":
        # llama.cpp takes it for one that splits digits first, and the conversion says so
        steps = [tokenizers.pre_tokenizers.Digits(True), tokenizer.pre_tokenizer]
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    if isinstance(tokenizer.normalizer, tokenizers.normalizers.NFC):
        tokenizer.normalizer = tokenizers.normalizers.Sequence([])
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def with_config(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a tokenizer's folder with a Llama config."""
    shutil.copytree(source, folder)
    folder.chmod(0o755)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        **changes,
    }
    (folder / "config.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


PUBLISHED = {
    "llama3.1": ("LlamaForCausalLM", 128256),
    "llama2": ("LlamaForCausalLM", 32000),
    "smollm2": ("LlamaForCausalLM", 49152),
    "qwen3": ("Qwen3ForCausalLM", 151936),
    "tekken": ("MistralForCausalLM", 131072),
}


@pytest.fixture(scope="module", params=["nano-llama", "nano-nemotron", *PUBLISHED])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, examples: Path
) -> Iterator[tuple[Tokenizer, Encode]]:
    """llama.cpp's tokenizer over our file, and the model's own."""
    name, work = request.param, tmp_path_factory.mktemp("vocab")
    if name.startswith("nano"):
        folder = examples / name
    else:
        shared = request.getfixturevalue("shared")
        family, size = PUBLISHED[name]
        source = shared / "tokenizers" / name
        folder = with_config(source, work / name, vocab_size=size, architectures=[family])
    # The tokenizers library sees special tokens in a text, sentencepiece does not.
    special = not (folder / "tokenizer.model").is_file()
    tokenizer = Tokenizer(convert_vocabulary(folder, work), special)
    yield tokenizer, reference(folder)
    tokenizer.close()


@pytest.mark.parametrize("text", TEXTS)
def test_vocabulary_gives_the_ids_of_known_texts(pair: tuple[Tokenizer, Encode], text: str) -> None:
    ours, theirs = pair
    assert ours.encode(text) == theirs(text)


def test_vocabulary_gives_the_ids_of_a_book(pair: tuple[Tokenizer, Encode], examples: Path) -> None:
    ours, theirs = pair
    for text in (examples / "held-out.txt").read_text().split("\n\n")[:100]:
        assert ours.encode(text) == theirs(text)


# Scripts whose classes are the same in every version of Unicode that the tokenizers were made for.
CHARACTERS = (
    "".join(map(chr, range(32, 0x250))),
    "0123456789 \t\n\r'.,!?-_▁\u00a0\u2028\u200d\u0301",
    "абвгдЖЯ漢字かなカナ한글العربيةעבריתไทยहिन्दीΕλλ🦙🚀😶🌫️✅½Ⅷ١٢٣१२",
)


@pytest.mark.parametrize("texts", [4_000, pytest.param(10_000, marks=pytest.mark.harden)])
def test_vocabulary_gives_the_ids_of_any_text(
    texts: int, pair: tuple[Tokenizer, Encode], request: pytest.FixtureRequest
) -> None:
    ours, theirs = pair
    characters = CHARACTERS
    if request.node.callspec.params["pair"] == "tekken":
        # what llama.cpp has in place of its expression parts marks from letters
        characters = tuple(map(without_marks, CHARACTERS))
    random = Random(1)
    for _ in range(texts):
        scripts = random.choices(characters, k=random.randrange(41))
        text = "".join(map(random.choice, scripts))
        assert ours.encode(text) == theirs(text)


def without_marks(characters: str) -> str:
    return "".join(each for each in characters if unicodedata.category(each)[0] != "M")


def test_vocabulary_adds_bos_where_the_tokenizer_does(examples: Path, tmp_path: Path) -> None:
    for model, bos in (("nano-llama", 4094), ("nano-nemotron", 2)):
        tokenizer = Tokenizer(convert_vocabulary(examples / model, tmp_path))
        assert tokenizer.encode("Hello", add=True)[0] == bos
        assert tokenizer.encode("Hello", add=True)[1:] == tokenizer.encode("Hello")
        tokenizer.close()


def pieces_as_json(model: sentencepiece.SentencePieceProcessor, prefix: bool) -> str:
    """A SentencePiece BPE model as transformers would write it into tokenizer.json."""
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda piece: -model.get_score(ids[piece])):
        i = ids[piece]
        if model.is_control(i) or model.is_byte(i) or model.is_unknown(i):
            continue
        splits = [(piece[:n], piece[n:]) for n in range(1, len(piece))]
        known = [split for split in splits if split[0] in ids and split[1] in ids]
        merges += sorted(known, key=lambda split: (ids[split[0]], ids[split[1]]))
    unknown = model.id_to_piece(model.unk_id())
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    steps = [tokenizers.normalizers.Replace(" ", "▁")]
    if prefix:
        steps.insert(0, tokenizers.normalizers.Prepend("▁"))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
    tokenizer.add_special_tokens([piece for piece in pieces if model.is_control(ids[piece])])
    return tokenizer.to_str()


def test_spm_from_json_gives_the_ids_of_sentencepiece(
    examples: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("nemotron-f16")
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_text(pieces_as_json(pieces, prefix=False))
    path = convert_vocabulary(folder, tmp_path)
    whole = open_gguf(convert_vocabulary(examples / "nano-nemotron", tmp_path))
    ours = open_gguf(path)
    for key in ("model", "pre", "tokens", "token_type", "bos_token_id", "add_space_prefix"):
        name = f"tokenizer.ggml.{key}"
        assert list(str(ours.get(name))) == list(str(whole.get(name))), key
    tokenizer, encode = Tokenizer(path), reference(folder)
    for text in TEXTS:
        assert tokenizer.encode(text) == encode(text) == list(pieces.encode(text))
    tokenizer.close()


def test_spm_from_json_puts_a_space_before_the_text(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("nemotron-f16")
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_text(pieces_as_json(pieces, prefix=True))
    tokenizer, encode = Tokenizer(convert_vocabulary(folder, tmp_path)), reference(folder)
    for text in ("Hello world", "The old man", "x"):
        assert tokenizer.encode(text) == encode(text)
    tokenizer.close()


def test_sentencepiece_keeps_user_defined_symbols_whole(
    checkpoint: Callable[[str], Path], tmp_path: Path, examples: Path
) -> None:
    folder = checkpoint("nemotron-f16")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 600}))
    (folder / "tokenizer_config.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        input=str(examples / "held-out.txt"),
        model_prefix=str(tmp_path / "tiny"),
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["<extra_0>", "▁▁", "\t"],
        minloglevel=2,
    )
    shutil.copyfile(tmp_path / "tiny.model", folder / "tokenizer.model")
    path = convert_vocabulary(folder, tmp_path)
    assert TokenType.USER_DEFINED in open_gguf(path).get("tokenizer.ggml.token_type")
    tokenizer, encode = Tokenizer(path), reference(folder)
    # sentencepiece takes ▁ in a text for a space; llama.cpp looks for such symbols before that.
    texts = [text for text in TEXTS if "▁" not in text]
    for text in (*texts, "a<extra_0>b", "x  y   z    w", "\t\tq"):
        assert tokenizer.encode(text) == encode(text)
    tokenizer.close()
