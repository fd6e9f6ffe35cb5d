"""Nemotron-H, Nemotron Nano v2 and Nemotron 3: state-space layers, attention, and FFNs or experts.

Every layer has one norm and one mixer, whose kind the config gives layer by layer: M for Mamba2,
* for attention, - for an FFN, E for experts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minitron_convert.architectures.keys import FILE_TYPE, constant
from minitron_convert.architectures.llama import ROTARY_PAIRS
from minitron_convert.architectures.mamba import (
    MAMBA_KEYS,
    MAMBA_LAYER,
    MAMBA_MAPPINGS,
    MAMBA_RENAMES,
    mamba_sizes,
)
from minitron_convert.architectures.record import (
    ATTENTION,
    Architecture,
    Experts,
    Getter,
    Key,
    Layer,
    TensorMapping,
    Value,
    WrongConfig,
    needs,
)
from minitron_convert.vocab.rules import VocabularyRules
from minitron_core.quoting import quoted

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel

_KIND_OF_WORD = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "moe": "E",
    "mlp": "-",
}
EXPERT_TENSORS = {
    **needs("ffn_gate_inp ffn_down_exps ffn_up_exps ffn_down_shexp ffn_up_shexp"),
    "exp_probs_b.bias": True,
}
LATENT = needs("ffn_latent_down ffn_latent_up")
NEXT_TOKEN = needs(
    f"{ATTENTION} post_attention_norm nextn.enorm nextn.hnorm nextn.eh_proj nextn.shared_head_norm"
)


def _normalize(config: dict[str, Any]) -> dict[str, Any]:
    """One spelling of the layers' kinds, of the head's size, and of the epsilons."""
    blocks = config.get("block_configs")
    words = [block["block_type"] for block in blocks] if blocks else config.get("layers_block_type")
    kinds = config.get("hybrid_override_pattern")
    if blocks or kinds is None:
        kinds = "".join(_KIND_OF_WORD[word] for word in words or ())
    if not kinds or set(kinds) - set("M*-E"):
        raise WrongConfig("the kinds of its layers are missing or unknown")
    head_dim = config.get("head_dim", config.get("attention_head_dim"))
    epsilon = config.get("rms_norm_eps", config.get("norm_eps", config.get("layer_norm_epsilon")))
    more = {
        "layer_kinds": kinds,
        "num_hidden_layers": len(kinds),
        "head_dim": head_dim,
        "rms_norm_eps": epsilon,
        "layer_norm_epsilon": config.get("layer_norm_epsilon", epsilon),
        "intermediate_size": config.get("intermediate_size", 0),
    }
    return {**config, **more}


def _layers(model: SourceModel) -> list[Layer]:
    """The layers, and one more where the checkpoint predicts a further token.

    Its two small layers, attention and experts, become one.
    """
    config, latent = model.config, model.config.find("moe_latent_size") is not None
    blocks = config.find("block_configs")
    layers = []
    for i, kind in enumerate(config.values["layer_kinds"]):
        sizes = {"expert_ffn": blocks[i]["moe_intermediate_size"]} if blocks and kind == "E" else {}
        layers.append(Layer("latent" if kind == "E" and latent else kind, sizes))
    if _has_next_token(model):
        layers.append(Layer("latent next" if latent else "next"))
    return layers


def _has_next_token(model: SourceModel) -> bool:
    checkpoint = model.checkpoint
    if model.config.find("block_configs") or not model.config.find("num_nextn_predict_layers"):
        return False
    return checkpoint.vocab_only or any(name.startswith("mtp.") for name in checkpoint.tensors)


def _sizes(model: SourceModel) -> dict[str, int]:
    sizes = mamba_sizes(model)
    if _has_experts(model):
        sizes["shared_ffn"] = model.config.whole("moe_shared_expert_intermediate_size")
        sizes["expert_hidden"] = model.config.whole("moe_latent_size", default=model.size.hidden)
    return sizes


def _has_experts(model: SourceModel) -> bool:
    return "E" in str(model.config.values["layer_kinds"])


def _refuse(model: SourceModel) -> str | None:
    if model.config.find("mlp_hidden_act") not in (None, "relu2"):
        activation = quoted(model.config.find("mlp_hidden_act"))
        return f"FFNs with {activation} are not what llama.cpp computes"
    if (model.config.find("num_nextn_predict_layers") or 0) > 1:
        return "more than one further token is predicted, which llama.cpp cannot read"
    return None


def _kv_heads(model: SourceModel) -> list[int]:
    attention = ("*", "next", "latent next")
    return [model.size.kv_heads if layer.kind in attention else 0 for layer in model.layers]


def _ffn_lengths(model: SourceModel) -> list[int]:
    lengths = []
    for layer in model.layers:
        sizes = model.sizes(layer)
        name = {"M": "", "*": "", "-": "ffn"}.get(layer.kind, "expert_ffn")
        lengths.append(sizes[name] if name else 0)
    return lengths


def _of_experts(source: str | Getter) -> Getter:
    """A key that only models with experts have."""

    def value(model: SourceModel) -> Value:
        if not _has_experts(model):
            return None
        return model.config.find(source) if isinstance(source, str) else source(model)

    return value


def _per_block(key: str) -> Getter:
    """A number of the config, or one per layer where each has its own (Puzzle)."""

    def value(model: SourceModel) -> Value:
        blocks = model.config.find("block_configs")
        if blocks:
            return [block.get(key) or 0 for block in blocks]
        return model.config.find(key)

    return value


def _flat_used_count(model: SourceModel) -> int | None:
    return None if model.config.find("block_configs") else model.config.find("num_experts_per_tok")


KEYS: tuple[Key, ...] = (
    ("block_count", lambda model: len(model.layers)),
    ("context_length", constant(1 << 20)),  # nothing in these models depends on the position
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", _ffn_lengths),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", _kv_heads),
    ("rope.freq_base", lambda model: model.rope.theta),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
    ("expert_count", _of_experts("n_routed_experts")),
    ("expert_used_count", _of_experts(_flat_used_count)),
    ("expert_group_count", _of_experts("n_group")),
    ("expert_group_used_count", _of_experts("topk_group")),
    (FILE_TYPE, constant(None)),
    ("vocab_size", "vocab_size"),
    ("rope.dimension_count", lambda model: model.size.hidden // model.size.heads),
    *MAMBA_KEYS,
    ("rope.scaling.finetuned", constant(False)),
    ("attention.key_length", "head_dim"),
    ("attention.value_length", "head_dim"),
    ("expert_feed_forward_length", _of_experts(_per_block("moe_intermediate_size"))),
    ("expert_used_count", _of_experts(_per_block("num_experts_per_tok"))),
    (
        "expert_shared_feed_forward_length",
        _of_experts("moe_shared_expert_intermediate_size"),
    ),
    ("expert_shared_count", _of_experts("n_shared_experts")),
    ("expert_weights_norm", _of_experts("norm_topk_prob")),
    ("expert_weights_scale", _of_experts("routed_scaling_factor")),
    ("moe_latent_size", _of_experts("moe_latent_size")),
    (
        "nextn_predict_layers",
        lambda model: (
            model.config.find("num_nextn_predict_layers") if _has_next_token(model) else None
        ),
    ),
)

NEMOTRON_H = Architecture(
    "nemotron_h",
    models="Nemotron-H-4B, -8B, -47B, -56B, NVIDIA-Nemotron-Nano-9B-v2, -12B-v2, "
    "NVIDIA-Nemotron-3-Nano-4B",
    hub="nvidia/NVIDIA-Nemotron-Nano-9B-v2",
    defaults={"max_position_embeddings": 1 << 20},
    normalize=_normalize,
    layer_kinds={
        "M": MAMBA_LAYER,
        "*": needs(ATTENTION),
        "-": needs("attn_norm ffn_up ffn_down"),
        "E": {**needs("attn_norm"), **EXPERT_TENSORS},
        "latent": {**needs("attn_norm"), **EXPERT_TENSORS, **LATENT},
        "next": {**NEXT_TOKEN, **EXPERT_TENSORS},
        "latent next": {**NEXT_TOKEN, **EXPERT_TENSORS, **LATENT},
    },
    layers=_layers,
    sizes=_sizes,
    renames=(
        # gguf-py's map lacks these names
        (r"mtp\.layers\.0\.(enorm|hnorm|eh_proj)\.weight", r"blk.{layers}.nextn.\1.weight"),
        (r"mtp\.layers\.1\.norm\.weight", "blk.{layers}.post_attention_norm.weight"),
        (
            r"mtp\.layers\.1\.final_layernorm\.weight",
            "blk.{layers}.nextn.shared_head_norm.weight",
        ),
        (r"mtp\.layers\.[01]\.(.*)", r"backbone.layers.{layers}.\1"),
        (r"model\.(.*)", r"backbone.\1"),
        *MAMBA_RENAMES,
    ),
    mappings=(ROTARY_PAIRS, *MAMBA_MAPPINGS),
    keys=KEYS,
    vocabulary=VocabularyRules("bpe", pad_to=8),
    refuse=_refuse,
)

NEMOTRON_H_MOE = replace(
    NEMOTRON_H,
    arch="nemotron_h_moe",
    experts=Experts(
        {"down_proj": "ffn_down_exps", "up_proj": "ffn_up_exps"},
        r"(?P<prefix>backbone\.layers\.\d+)\.mixer\.experts"
        r"\.(?P<expert>\d+)\.(?P<part>\w+)\.weight",
    ),
)

PUZZLE = replace(
    NEMOTRON_H_MOE,
    models="NVIDIA-Nemotron-Labs-3-Puzzle-75B-A9B",
    hub="nvidia/NVIDIA-Nemotron-Labs-3-Puzzle-75B-A9B",
    mappings=(TensorMapping(r"mtp\..*|backbone\.layers\.\d+\.mtp\..*"), *NEMOTRON_H_MOE.mappings),
    renames=NEMOTRON_H.renames[4:],
)


def by_layers(model: SourceModel) -> Architecture:
    """With experts if a layer has them; configs of dense models may give numbers of experts too."""
    return NEMOTRON_H_MOE if _has_experts(model) else NEMOTRON_H


ARCHITECTURES = {
    "NemotronHForCausalLM": replace(
        NEMOTRON_H,
        models=f"{NEMOTRON_H.models}, NVIDIA-Nemotron-3-Nano-30B-A3B, -Super-120B-A12B, "
        "-Ultra-550B-A55B, NVIDIA-Nemotron-3.5-Lightning-30B-A3B, Nemotron-Cascade-2-30B-A3B",
        hub="nvidia/NVIDIA-Nemotron-Nano-9B-v2, nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        variant=by_layers,
    ),
    "NemotronHPuzzleForCausalLM": PUZZLE,
}
