"""A GGUF file as a model of transformers, whose matrices have the file's names and values."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_core.cpu_limits import available_memory
from minitron_core.errors import OutOfResources, Unsupported
from minitron_core.gguf import Gguf
from minitron_quant.blocks import decode_blocks
from minitron_quant.gptq.output_hessian import BLOCK
from minitron_quant.model_files import EMBEDDING, OUTPUT, tensors_of

_LIBRARIES = ("torch", "transformers", "accelerate")
# of memory for each weight, while transformers reads the file; for each number that goes into or
# comes out of a matrix, until its gradient is there; and for each logit
_BYTES_PER_WEIGHT, _BYTES_PER_VALUE, _BYTES_PER_LOGIT = 9, 8, 16
_LIBRARY_BYTES = 500_000_000
_ROPE_FACTORS = "rope_freqs.weight"
_WITHOUT = "--gptq sequential does without transformers"


def check_transformers(shards: Sequence[Gguf], n_ctx: int) -> None:
    """Raises Unsupported where transformers is missing, OutOfResources for too little memory.

    n_ctx: tokens that run at once.
    """
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise Unsupported(
            f"two-sided GPTQ takes gradients with {', '.join(missing)}, not installed here",
            'pip install "minitron[transformers]"',
        )
    if len(shards) > 1:
        raise Unsupported("transformers does not read a model in several files", _WITHOUT)
    needed, free = gradient_memory(shards[0], n_ctx), available_memory()
    if needed > free:
        raise OutOfResources(
            f"two-sided GPTQ holds the model as float32, its gradients and their sums, in "
            f"{needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free",
            "--gptq sequential holds one layer at a time",
        )


def gradient_memory(shard: Gguf, n_ctx: int) -> int:
    """Bytes that gradients of so many tokens take, the model included."""
    tensors = tensors_of([shard])
    vocabulary = tensors[EMBEDDING][1].rows
    total = _LIBRARY_BYTES + _BYTES_PER_WEIGHT * sum(i.n_elements for _, i in tensors.values())
    total += _BYTES_PER_LOGIT * n_ctx * vocabulary
    for name, (_, info) in tensors.items():
        if name.startswith("blk.") and len(info.shape) > 1:
            total += _BYTES_PER_VALUE * n_ctx * (info.rows + info.shape[0])
            total += 4 * info.rows * min(info.rows, BLOCK)
    return total


def load_model(shard: Gguf, device: str) -> Any:
    """The model in float32; Unsupported where transformers does not read the file."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder, name = shard.path.resolve().parent, shard.path.name
    try:
        # it has a progress bar that no option turns off
        with redirect_stderr(StringIO()):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=name, local_files_only=True, dtype=torch.float32
            )
    except (ImportError, LookupError, OSError, RuntimeError, ValueError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise Unsupported(f"transformers does not read {name}: {line}", _WITHOUT) from error
    _scale_rope(model, shard)
    return model.eval().requires_grad_(False).to(device)


def _scale_rope(model: Any, shard: Gguf) -> None:
    """Divide the frequencies of rope by the file's factors, which transformers does not read."""
    info = tensors_of([shard]).get(_ROPE_FACTORS, (shard, None))[1]
    if info is not None:
        factors = decode_blocks(info.type, shard.data(info), (info.n_elements,))
        frequencies = model.model.rotary_emb.inv_freq
        frequencies.div_(frequencies.new_tensor(factors))


def matrices(model: Any, shard: Gguf) -> Iterator[tuple[str, Any, NDArray[np.intp]]]:
    """The weights of the layers: the file's name, the module, and the order of its rows.

    Row r of the file's weight is the module's row order[r].
    """
    import gguf
    import torch

    known, architecture = tensors_of([shard]), shard.get("general.architecture")
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, int(shard.get(f"{architecture}.block_count")))
    for path, module in model.named_modules():
        name = f"{names.get_name(path)}.weight"
        is_matrix = isinstance(module, torch.nn.Linear) and name not in (EMBEDDING, OUTPUT)
        if is_matrix and name in known:
            yield name, module, _row_order(module, name, shard)


def _row_order(module: Any, name: str, shard: Gguf) -> NDArray[np.intp]:
    """Which order it is the values tell; Unsupported where none fits.

    llama.cpp's converter interleaves the halves of each head of q and k for its rope.
    """
    info = tensors_of([shard])[name][1]
    ours = decode_blocks(info.type, shard.data(info), (info.rows, info.shape[0]))
    theirs = module.weight.detach().cpu().numpy()
    prefix = f"{shard.get('general.architecture')}.attention"
    heads = shard.get(f"{prefix}.head_count")
    if "attn_k." in name:
        heads = shard.get(f"{prefix}.head_count_kv") or heads
    rows = np.arange(info.rows)
    orders = [rows]
    if info.rows % (2 * heads) == 0:
        orders.append(rows.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1))
    for order in orders:
        if theirs.shape == ours.shape and np.allclose(theirs[order], ours, 1e-3, 1e-6):
            return order
    raise Unsupported(f"transformers reads other values for {name}", _WITHOUT)
