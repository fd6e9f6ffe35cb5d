"""Apertus: an activation with four learned numbers per layer, which llama.cpp reads from keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from minitron_convert.architectures.keys import LLAMA_AFTER
from minitron_convert.architectures.record import (
    ATTENTION,
    PLAIN_FFN,
    Architecture,
    Getter,
    TensorMapping,
    needs,
)
from minitron_convert.architectures.rope import llama3_frequencies
from minitron_convert.encode import to_float
from minitron_convert.vocab.rules import LLAMA_RULES

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel


def _of_layers(name: str) -> Getter:
    """The number of every layer, in order; these are the only weights that a plan reads."""

    def value(model: SourceModel) -> list[float] | None:
        found = {}
        for tensor in model.checkpoint.tensors.values():
            match = re.fullmatch(rf"model\.layers\.(\d+)\.mlp\.act_fn\.{name}", tensor.name)
            if match and tensor.n_elements == 1:
                found[int(match[1])] = float(to_float(tensor.read(), tensor.dtype).reshape(()))
        return [found[layer] for layer in sorted(found)] or None

    return value


APERTUS = Architecture(
    "apertus",
    models="Apertus (8B, 70B)",
    hub="swiss-ai/Apertus-8B-Instruct-2509",
    defaults={
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "rope_theta": 12000000.0,
    },
    layer_kinds={"layer": needs(f"{ATTENTION} attn_q_norm attn_k_norm {PLAIN_FFN}")},
    mappings=(TensorMapping(r".*\.mlp\.act_fn\.(?:alpha_n|alpha_p|beta|eps)"),),
    synthesized_tensors=llama3_frequencies,
    before=tuple(
        (f"xielu.{name}", _of_layers(name)) for name in ("alpha_n", "alpha_p", "beta", "eps")
    ),
    after=LLAMA_AFTER,
    vocabulary=LLAMA_RULES,
)

ARCHITECTURES = {"ApertusForCausalLM": APERTUS}
