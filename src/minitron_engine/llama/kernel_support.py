"""Which types of weights a device can multiply with: asked of its backend, nothing is computed."""

from collections.abc import Iterable, Iterator

from minitron_engine.llama.devices import start
from minitron_engine.llama.library import InitParameters, ggml, registry

_GPU_KINDS = (1, 2)
_F32 = 0
# rows of this many weights hold whole blocks of every type
_COLUMNS, _ROWS = 512, 64
_MEMORY = 1 << 16


def types_without_kernel(kinds: Iterable[int]) -> dict[int, str]:
    """Of these types (ggml ids) the ones that a device in use cannot run, with its name.

    Devices in use are the GPUs, or the CPU where there is none.
    """
    start()
    kinds = list(kinds)
    found: dict[int, str] = {}
    for device in _devices_in_use():
        name = ggml().ggml_backend_dev_name(device).decode()
        found |= {kind: name for kind in kinds if not _multiplies(device, kind)}
    return found


def _devices_in_use() -> Iterator[int]:
    count = registry().ggml_backend_dev_count()
    handles = [registry().ggml_backend_dev_get(index) for index in range(count)]
    kinds = [ggml().ggml_backend_dev_type(handle) for handle in handles]
    wanted = _GPU_KINDS if any(kind in _GPU_KINDS for kind in kinds) else (0,)
    return (handle for handle, kind in zip(handles, kinds, strict=True) if kind in wanted)


def _multiplies(device: int, kind: int) -> bool:
    base = ggml()
    context = base.ggml_init(InitParameters(_MEMORY, None, True))
    try:
        weights = base.ggml_new_tensor_2d(context, kind, _COLUMNS, _ROWS)
        inputs = base.ggml_new_tensor_2d(context, _F32, _COLUMNS, _ROWS)
        product = base.ggml_mul_mat(context, weights, inputs)
        return bool(base.ggml_backend_dev_supports_op(device, product))
    finally:
        base.ggml_free(context)
