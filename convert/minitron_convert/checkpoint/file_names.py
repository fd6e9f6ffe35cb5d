"""The files of a checkpoint that a conversion reads, by name."""

from pathlib import Path

BESIDE_WEIGHTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tekken.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "README.md",
)
# In the order in which they are preferred.
WEIGHTS = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
)


def files_of(folder: Path) -> tuple[Path, ...]:
    """The files of a checkpoint's folder that decide its conversion, by name."""
    patterns = (*BESIDE_WEIGHTS, *(pattern for form in WEIGHTS for pattern in form))
    return tuple(sorted(path for pattern in patterns for path in folder.glob(pattern)))
