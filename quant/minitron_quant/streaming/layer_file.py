"""A model of one layer as a GGUF file: the header is real, the weights are a hole.

llama.cpp loads it in the memory of one layer, and the weights of any layer are put in there.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from minitron_core.errors import from_os_error
from minitron_core.gguf import (
    F32,
    Gguf,
    KeyValue,
    TensorInfo,
    TensorSpec,
    ValueType,
    encode_header,
    file_size,
)
from minitron_core.gguf.layers import in_layer, layer_number
from minitron_quant.model_files import EMBEDDING, OUTPUT, Tensors, tensors_of

# Tokens of the file's vocabulary: states go in, no tokens, and logits cost next to nothing.
_TOKENS = 32
# Architectures that one layer on its own computes exactly: nothing depends on the layer's number,
# embeddings are not scaled, and the layer adds what two of its products give to the states.
STREAMED = frozenset(
    (
        "arcee",
        "ernie4_5",
        "exaone",
        "hunyuan-dense",
        "llama",
        "nemotron",
        "qwen2",
        "qwen3",
        "seed_oss",
        "starcoder2",
    )
)
# keys that make layers differ, or scale what goes in between
_BREAKING = (
    "expert_count",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
)


def reason_not_streamed(shards: Sequence[Gguf]) -> str:
    """Why layers of this model cannot run one by one; empty where they can."""
    file = shards[0]
    architecture = file.get("general.architecture")
    if architecture not in STREAMED:
        return f"layers of the architecture {architecture} cannot run one by one"
    for key in _BREAKING:
        if file.get(f"{architecture}.{key}"):
            return f"layers cannot run one by one where a model has {architecture}.{key}"
    tensors = tensors_of(shards)
    scales = [name for name in tensors if not name.endswith((".weight", ".bias"))]
    if scales:
        return f"layers cannot run one by one where a model has {scales[0]}"
    shapes = [
        {in_layer(name, 0): (info.shape, info.type) for name, info in layer.items()}
        for layer in _layers(tensors).values()
    ]
    if not shapes or any(each != shapes[0] for each in shapes):
        return "the layers of this model differ in shapes or types"
    return ""


def layer_count(shards: Sequence[Gguf]) -> int:
    """The number of layers of a model that can be streamed."""
    return len(_layers(tensors_of(shards)))


def layer_tensors(tensors: Tensors, layer: int) -> dict[str, tuple[Gguf, TensorInfo]]:
    """The tensors of one layer, under the names that they have in the file of one layer."""
    return {
        in_layer(name, 0): found for name, found in tensors.items() if layer_number(name) == layer
    }


def _layers(tensors: Tensors) -> dict[int, dict[str, TensorInfo]]:
    layers: dict[int, dict[str, TensorInfo]] = {}
    for name, (_, info) in tensors.items():
        number = layer_number(name)
        if number is not None:
            layers.setdefault(number, {})[name] = info
    return layers


def write_layer_file(shards: Sequence[Gguf], path: Path, *, decoded: bool) -> None:
    """Write the header of a model of one layer; its weights are zeros that take no disk.

    decoded: matrices are F32, whatever they are in the source.
    """
    metadata = list(_metadata(shards[0]))
    specs = list(_specs(tensors_of(shards), decoded=decoded))
    try:
        with path.open("wb") as file:
            file.write(encode_header(metadata, specs))
            file.truncate(file_size(metadata, specs))
    except OSError as error:
        raise from_os_error(error, path, "write") from error


def _metadata(source: Gguf) -> Iterator[KeyValue]:
    architecture = source.get("general.architecture")
    layers = int(source.get(f"{architecture}.block_count"))
    replaced = {
        f"{architecture}.block_count": 1,
        f"{architecture}.vocab_size": _TOKENS,
    }
    for key, entry in source.metadata.items():
        if key in replaced or key.startswith(("tokenizer.", "split.")):
            continue
        if entry.element_type is not None and len(entry.value) == layers:
            # numbers of each layer, such as its heads: streamed layers have the same
            entry = KeyValue.of(key, entry.type, entry.value[:1], entry.element_type)
        yield entry
    for key, number in replaced.items():
        yield KeyValue.of(key, ValueType.UINT32, number)
    yield KeyValue.of("tokenizer.ggml.model", ValueType.STRING, "no_vocab")


def _specs(tensors: Tensors, *, decoded: bool) -> Iterator[TensorSpec]:
    for name, (_, info) in tensors.items():
        # a bias of the logits has the size of the vocabulary, and the logits are not used
        if layer_number(name) in (None, 0) and name != "output.bias":
            vocabulary = name in (EMBEDDING, OUTPUT)
            shape = (info.shape[0], _TOKENS) if vocabulary else info.shape
            yield TensorSpec(name, shape, F32 if decoded or vocabulary else info.type)
