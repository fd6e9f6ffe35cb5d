"""GGUF files: a reader that checks every length, and a writer that streams and is atomic."""

from minitron_core.gguf.layers import in_layer, layer_bytes, layer_number
from minitron_core.gguf.reader import (
    DEFAULT_ALIGNMENT,
    Gguf,
    TensorInfo,
    iterate_tensors,
    open_gguf,
    open_shards,
)
from minitron_core.gguf.shards import ShardName, model_stem, parse_shard_name, shard_paths
from minitron_core.gguf.types import (
    BF16,
    F16,
    F32,
    Q8_0,
    TYPE,
    TYPE_ID,
    TensorType,
    row_bytes,
    tensor_bytes,
)
from minitron_core.gguf.values import KeyValue, ValueType, encode_value
from minitron_core.gguf.writer import GgufWriter, TensorSpec, encode_header, file_size, padded

__all__ = [
    "BF16",
    "DEFAULT_ALIGNMENT",
    "F16",
    "F32",
    "Q8_0",
    "TYPE",
    "TYPE_ID",
    "Gguf",
    "GgufWriter",
    "KeyValue",
    "ShardName",
    "TensorInfo",
    "TensorSpec",
    "TensorType",
    "ValueType",
    "encode_header",
    "encode_value",
    "file_size",
    "in_layer",
    "iterate_tensors",
    "layer_bytes",
    "layer_number",
    "model_stem",
    "open_gguf",
    "open_shards",
    "padded",
    "parse_shard_name",
    "row_bytes",
    "shard_paths",
    "tensor_bytes",
]
