"""Mistral: Llama's tensors and keys, with other defaults."""

from __future__ import annotations

from minitron_convert.architectures.llama import Llama
from minitron_convert.checkpoint.config import Defaults


class Mistral(Llama):
    """MistralForCausalLM, which llama.cpp runs as llama."""

    defaults = Defaults(context=131072, norm_epsilon=1e-6, kv_heads=8)


ARCHITECTURES = {"MistralForCausalLM": Mistral}
