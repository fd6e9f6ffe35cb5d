"""A mixture of experts made of a dense model: each layer has four FFNs, a token uses one."""

from pathlib import Path

import numpy as np

from minitron_core.gguf import F32, GgufWriter, KeyValue, TensorSpec, ValueType, open_gguf

EXPERTS = 4


def write_mixture(dense: Path, path: Path) -> Path:
    """The router's rows are r, −r, 0, 0: it chooses one of the first two experts, by a sign."""
    file = open_gguf(dense)
    keys = {"llama.expert_count": EXPERTS, "llama.expert_used_count": 1}
    added = [KeyValue.of(key, ValueType.UINT32, value) for key, value in keys.items()]
    random = np.random.default_rng(1)
    specs, data = [], []
    for info in file.tensors:
        parts = info.name.split(".")
        if parts[-2] not in ("ffn_gate", "ffn_up", "ffn_down"):
            specs.append(TensorSpec(info.name, info.shape, info.type))
            data.append(file.data(info).tobytes())
            continue
        name = f"{parts[0]}.{parts[1]}.{parts[2]}_exps.weight"
        specs.append(TensorSpec(name, (*info.shape, EXPERTS), info.type))
        data.append(file.data(info).tobytes() * EXPERTS)
        if parts[-2] == "ffn_gate":
            router = np.zeros((EXPERTS, info.shape[0]), np.float32)
            router[0] = random.standard_normal(info.shape[0])
            router[1] = -router[0]
            name = f"{parts[0]}.{parts[1]}.ffn_gate_inp.weight"
            specs.append(TensorSpec(name, (info.shape[0], EXPERTS), F32))
            data.append(router.tobytes())
    with GgufWriter(path, [*file.metadata.values(), *added], specs) as writer:
        for block in data:
            writer.write(block)
    return path
