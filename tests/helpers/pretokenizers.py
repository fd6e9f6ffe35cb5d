"""llama.cpp's pre-tokenizers, and runs of one kind of character that strangers may send."""

from pathlib import Path

from helpers.support import with_entry
from minitron_core.gguf import ValueType

# llama-vocab.cpp of the pinned llama-cpp-python (0c1e57098): for each pre-tokenizer one of the
# names that tokenizer.ggml.pre may have
PRE_TOKENIZERS = (
    "default",
    *("afmoe", "bailingmoe", "bloom", "chameleon", "chatglm-bpe", "codeshell", "command-r"),
    *("dbrx", "deepseek-coder", "deepseek-llm", "deepseek-v3", "exaone", "exaone-moe", "falcon"),
    *("gemma4", "gpt-2", "gpt-4o", "gpt3-finnish", "granite-docling", "granite-embed-multi-97m"),
    *("grok-2", "hunyuan", "hunyuan-dense", "hy_v4", "jais", "jais-2", "joyai-llm", "kimi-k2"),
    *("laguna", "llama-bpe", "mellum2", "minerva-7b", "minicpm5", "minimax-m2", "mpt", "olmo"),
    *("poro-chat", "qwen2", "qwen35", "refact", "sarvam-moe", "seed-coder", "smaug-bpe", "smollm"),
    *("solar-open", "spark2_5", "stablelm2", "starcoder", "superbpe", "tekken", "tiny_aya"),
    *("trillion", "ufakzeka", "viking", "whitespace", "youtu"),
)
# a period for each class that a pre-tokenizer's expression names, and for what none names
RUNS = {
    "small letter": "a",
    "capital": "A",
    "both": "aA",
    "letter and blank": "a ",
    "digit": "1",
    "Arabic digit": "\u0663",
    "blank": " ",
    "tab": "\t",
    "no-break space": "\u00a0",
    "ideographic space": "\u3000",
    "line break": "\n",
    "carriage return": "\r\n",
    "blank and line break": " \n",
    "apostrophe": "'",
    "punctuation": "=",
    "slash": "/",
    "slash and line break": "/\n",
    "dollar": "$",
    "currency": "\u20ac",
    "accented": "\u00e9",
    "accented capital": "\u00c9",
    "Cyrillic": "\u0434",
    "accent": "\u0301",
    "letter and accent": "a\u0301",
    "Han": "\u65e5",
    "kana": "\u304b",
    "Hangul": "\uac00",
    "Thai": "\u0e01",
    "emoji": "\U0001f600",
    "joiner": "\u200d",
    "control": "\x01",
    "private": "\ue000",
    "unassigned": "\u0378",
}
# what follows a run: some expressions look for the end, others beyond it
ENDS = ("", "1")


def with_pre_tokenizer(source: Path, target: Path, name: str) -> Path:
    """A copy of a model with GPT-2's kind of vocabulary and another pre-tokenizer."""
    return with_entry(source, target, "tokenizer.ggml.pre", ValueType.STRING, name)
