"""Token ids: llama.cpp's tokenizer over our vocabularies against the models' own tokenizers."""

from __future__ import annotations

import ctypes
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

from minitron_convert.convert import ConvertSettings, convert
from minitron_convert.vocab import TokenType
from minitron_core.errors import Damaged, Unsupported
from minitron_core.gguf import Gguf, open_gguf
from minitron_engine.llama.binding import api

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


class Tokenizer:
    """A vocabulary loaded by llama.cpp; `special` says whether special tokens are seen in text."""

    def __init__(self, path: Path, special: bool = False) -> None:
        self.special = special
        self._log = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self._log, ctypes.c_void_p(0))
        parameters = api.llama_model_default_params()
        parameters.vocab_only = True
        self.model = api.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model is not None
        self.vocab = api.llama_model_get_vocab(self.model)

    def encode(self, text: str, add: bool = False) -> list[int]:
        """Token ids of a text."""
        data = text.encode()
        room = len(data) + 16
        buffer = (api.llama_token * room)()
        count = api.llama_tokenize(self.vocab, data, len(data), buffer, room, add, self.special)
        return list(buffer[:count])

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return bool(api.llama_vocab_is_eog(self.vocab, token))

    def close(self) -> None:
        """Free the vocabulary."""
        api.llama_model_free(self.model)


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


def convert_vocabulary(folder: Path, out: Path) -> Path:
    """The GGUF file of a folder's vocabulary."""
    return convert(ConvertSettings(folder, out, vocab_only=True, force=True)).paths[0]


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


def test_vocabulary_gives_the_ids_of_any_text(
    pair: tuple[Tokenizer, Encode], request: pytest.FixtureRequest
) -> None:
    ours, theirs = pair
    characters = CHARACTERS
    if request.node.callspec.params["pair"] == "tekken":
        # what llama.cpp has in place of its expression parts marks from letters
        characters = tuple(map(without_marks, CHARACTERS))
    random = Random(1)
    for _ in range(10_000):
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


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def vocabulary_of(folder: Path, out: Path) -> Gguf:
    """The converted vocabulary, opened."""
    return open_gguf(convert_vocabulary(folder, out))


def test_vocabulary_holds_the_added_tokens_of_a_fine_tune(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-tied")
    added = [
        {"id": 4096, "content": "<|turn|>", "special": False, "normalized": False},
        {"id": 4097, "content": "▁▁", "special": False, "normalized": False},
        {"id": 4099, "content": "<stop>", "special": True, "normalized": False},
    ]
    edit(folder / "tokenizer.json", lambda value: value["added_tokens"].extend(added))
    edit(folder / "config.json", lambda value: value.update(vocab_size=4100))
    (folder / "generation_config.json").write_text('{"eos_token_id": [4095, 4099, 4096]}')
    path = convert_vocabulary(folder, tmp_path)
    model = open_gguf(path)
    assert model.get("tokenizer.ggml.tokens")[4096:] == ["<|turn|>", "  ", "[PAD4098]", "<stop>"]
    assert model.get("tokenizer.ggml.token_type")[4096:].tolist() == [3, 4, 5, 3]
    assert model.get("tokenizer.ggml.eot_token_id") == 4099
    assert model.get("tokenizer.ggml.eom_token_id") == 4096
    tokenizer = Tokenizer(path, special=True)
    assert [tokenizer.is_end(i) for i in (4094, 4095, 4096, 4098, 4099)] == [
        False,
        True,
        True,
        False,
        True,
    ]
    assert tokenizer.encode("a<stop>b")[-2] == 4099
    tokenizer.close()


def test_special_tokens_include_those_of_code_llama(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-tied")
    names = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    for count in (3, 4):
        added = [{"id": 4096 + i, "content": name} for i, name in enumerate(names[:count])]
        edit(folder / "tokenizer.json", lambda value, a=added: value.update(added_tokens=a))
        edit(folder / "config.json", lambda value: value.update(vocab_size=4100))
        model = vocabulary_of(folder, tmp_path)
        keys = [
            f"tokenizer.ggml.{key}_token_id" for key in ("fim_pre", "fim_suf", "fim_mid", "eot")
        ]
        found = [model.get(key) for key in keys]
        assert found == ([4096, 4097, 4098, 4099] if count == 4 else [None] * 4)


def test_recognize_refuses_by_name_of_the_nearest(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-tied")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace(r"\\p{N}{1,3}", r"\\p{N}{1,4}"))
    with pytest.raises(Unsupported, match="not known") as caught:
        convert_vocabulary(folder, tmp_path)
    assert "llama-bpe" in caught.value.hint


def test_recognize_knows_tekken_and_others(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-tied")
    cased = (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": cased}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    digits = {"type": "Digits", "individual_digits": True}
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    for parts, ignore, name in (
        ([split, level], True, "tekken"),
        ([digits, gpt2], False, "smollm"),
        ([gpt2], False, "gpt-2"),
    ):

        def change(
            value: dict[str, Any], parts: list[dict[str, Any]] = parts, ignore: bool = ignore
        ) -> None:
            value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
            value["model"]["ignore_merges"] = ignore

        edit(folder / "tokenizer.json", change)
        assert vocabulary_of(folder, tmp_path).get("tokenizer.ggml.pre") == name


def test_bpe_says_that_llama_cpp_does_not_normalize(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("llama-tied")
    edit(folder / "tokenizer.json", lambda value: value.update(normalizer={"type": "NFC"}))
    result = convert(ConvertSettings(folder, tmp_path, vocab_only=True))
    assert any("normalizes" in note for note in result.notes)


def test_vocabulary_larger_than_the_embedding_is_damaged(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for variant in ("llama-tied", "nemotron-f16"):
        folder = checkpoint(variant)
        edit(folder / "config.json", lambda value: value.update(vocab_size=4000))
        with pytest.raises(Damaged, match="4000"):
            convert_vocabulary(folder, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text", "types"])
def test_read_model_refuses_damaged_sentencepiece_models(
    damage: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("nemotron-f16")
    path = folder / "tokenizer.model"
    content = {
        "cut": path.read_bytes()[:1001],
        "text": b"not a model at all",
        "types": b"\x0a\x02\x18\x63",
    }[damage]
    path.write_bytes(content)
    with pytest.raises(Damaged, match="SentencePiece"):
        convert_vocabulary(folder, tmp_path)
