"""How many models fit into memory at once, by the shapes in the files' headers."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from minitron_core.cpu_limits import available_memory
from minitron_core.gguf import Gguf
from minitron_engine.llama.devices import Device, select_gpus
from minitron_engine.llama.settings import GpuLayers, Placement
from minitron_quant.chunking import ChunkSettings
from minitron_quant.perplexity.loaded_model import MICRO_BATCH

# the share of the free memory that models may take; the rest is for scores and the system
_MEMORY_SHARE = 0.7
# the reference's rows on disk: enough for many chunks, and never much of what is free
_CACHE_BYTES = 4 << 30
_DISK_SHARE = 0.2


def group_models(
    needs: Mapping[Path, int], reference: Path, models: Sequence[Path], available: int
) -> list[list[Path]] | None:
    """Groups of models that fit without the reference; None if all fit together with it.

    needs: bytes of each; available: bytes that are free. The models stay in the order given; one
    that does not fit by itself is a group of its own.
    """
    budget = _MEMORY_SHARE * available
    if sum(needs[path] for path in (reference, *models)) <= budget:
        return None
    groups: list[list[Path]] = []
    used = 0.0
    for path in models:
        if not groups or used + needs[path] > budget:
            groups.append([])
            used = 0.0
        groups[-1].append(path)
        used += needs[path]
    return groups


def bytes_needed(shards: Sequence[Gguf], chunks: ChunkSettings) -> int:
    """About what one model with a context for the chunks takes: weights, KV cache and logits."""
    weights = sum(info.nbytes for shard in shards for info in shard.tensors)
    return weights + _context_bytes(shards, chunks)


def second_context_fits(shards: Sequence[Gguf], chunks: ChunkSettings) -> bool:
    """Whether there is memory for one more context of a model."""
    return _context_bytes(shards, chunks) <= _MEMORY_SHARE * available_memory()


def _context_bytes(shards: Sequence[Gguf], chunks: ChunkSettings) -> int:
    tensors = [info for shard in shards for info in shard.tensors]
    keys = sum(info.rows for info in tensors if info.name.endswith("attn_k.weight"))
    context = chunks.context()
    outputs = chunks.n_seq * (chunks.n_ctx - chunks.first_output) + MICRO_BATCH
    # keys and values are two bytes each, logits four
    return 4 * keys * context.n_ctx + 4 * vocabulary_size(shards) * outputs


def vocabulary_size(shards: Sequence[Gguf]) -> int:
    """The number of tokens of a model: the rows of its embeddings."""
    tensors = (info for shard in shards for info in shard.tensors)
    return max((info.rows for info in tensors if info.name == "token_embd.weight"), default=0)


def memory_for(layers: GpuLayers, placement: Placement) -> int:
    """Free bytes where the models go: on the GPUs, if there are any and they are used."""
    return sum(device.free for device in _gpus_for(layers, placement)) or available_memory()


def runs_on_cpu(layers: GpuLayers, placement: Placement) -> bool:
    """Whether no GPU takes part in the work."""
    return not _gpus_for(layers, placement)


def _gpus_for(layers: GpuLayers, placement: Placement) -> list[Device]:
    return select_gpus(placement) if layers != 0 else []


def cache_folder(state: Path | None) -> Path:
    """Where the reference's rows go: beside the state file, or to the temporary files."""
    return Path(tempfile.gettempdir()) if state is None else state.absolute().parent


def cache_budget(folder: Path) -> int:
    """Bytes that the reference's rows may take in a folder."""
    return min(_CACHE_BYTES, int(_DISK_SHARE * shutil.disk_usage(folder).free))
