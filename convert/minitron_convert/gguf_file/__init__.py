"""GGUF files: reading with every length checked, and streaming, atomic writing."""

from minitron_convert.gguf_file.alone import open_alone
from minitron_convert.gguf_file.reader import (
    DEFAULT_ALIGNMENT,
    SHARD_NAME,
    Gguf,
    TensorInfo,
    iterate_tensors,
    open_gguf,
    open_shards,
)
from minitron_convert.gguf_file.types import (
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
from minitron_convert.gguf_file.values import KeyValue, ValueType, encode_value
from minitron_convert.gguf_file.writer import (
    GgufWriter,
    TensorSpec,
    encode_header,
    file_size,
    padded,
)

__all__ = [
    "BF16",
    "DEFAULT_ALIGNMENT",
    "F16",
    "F32",
    "Q8_0",
    "SHARD_NAME",
    "TYPE",
    "TYPE_ID",
    "Gguf",
    "GgufWriter",
    "KeyValue",
    "TensorInfo",
    "TensorSpec",
    "TensorType",
    "ValueType",
    "encode_header",
    "encode_value",
    "file_size",
    "iterate_tensors",
    "open_alone",
    "open_gguf",
    "open_shards",
    "padded",
    "row_bytes",
    "tensor_bytes",
]
