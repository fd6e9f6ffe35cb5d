"""Which types of weights a device can multiply with, by its backend; nothing is computed."""

from collections.abc import Iterable, Iterator

from minitron_engine.llama.devices import start
from minitron_engine.llama.library import InitParameters, ggml, registry

_GPUS = (1, 2)
_F32 = 0
# rows of this many weights hold whole blocks of every type
_COLUMNS, _ROWS = 512, 64
_MEMORY = 1 << 16


def types_without_kernel(ggml_types: Iterable[int]) -> dict[int, str]:
    """Those of the types that a device in use cannot run, each with the device's name.

    Devices in use are the GPUs, or the CPU where there is none.
    """
    start()
    ggml_types = list(ggml_types)
    found: dict[int, str] = {}
    for device in _devices_in_use():
        name = ggml().ggml_backend_dev_name(device).decode()
        found |= {each: name for each in ggml_types if not _multiplies(device, each)}
    return found


def _devices_in_use() -> Iterator[int]:
    count = registry().ggml_backend_dev_count()
    handles = [registry().ggml_backend_dev_get(index) for index in range(count)]
    kinds = [ggml().ggml_backend_dev_type(handle) for handle in handles]
    in_use = _GPUS if any(kind in _GPUS for kind in kinds) else (0,)
    return (handle for handle, kind in zip(handles, kinds, strict=True) if kind in in_use)


def _multiplies(device: int, ggml_type: int) -> bool:
    base = ggml()
    context = base.ggml_init(InitParameters(_MEMORY, None, True))
    try:
        weights = base.ggml_new_tensor_2d(context, ggml_type, _COLUMNS, _ROWS)
        inputs = base.ggml_new_tensor_2d(context, _F32, _COLUMNS, _ROWS)
        product = base.ggml_mul_mat(context, weights, inputs)
        return bool(base.ggml_backend_dev_supports_op(device, product))
    finally:
        base.ggml_free(context)
