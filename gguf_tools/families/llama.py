"""Llama in Hugging Face layout (transformers: LlamaForCausalLM), and Mistral, whose tensors are the same.

Only the config tells the two apart: Mistral limits attention to a sliding window if `sliding_window` is a number. Other
models with the same tensors compute something else with them; they are refused by the config keys that say so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import UnsupportedError
from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import Windows, bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Config, Inventory, layer_number
from gguf_tools.families.tiny import attention as field_tiny
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import Signature, signature

WINDOWED = ("llama", "granite_swa")
"""Preferred targets of models that may have a sliding window, which the architecture `llama` cannot express."""
BARE = bare("llama", defaults={"use_sliding_window": True}, windows=Windows(switch=True, listed=True))
"""Rules for a config without a known class: its sliding window works as Mistral's does."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_multiplier": (),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    "logit_scale": (1,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "clip_qkv": (),
    "attention_chunk_size": (),
    "use_qk_norm": (False,),
}
"""Config keys of models with Llama's tensors but another forward pass (Granite, MiniCPM, Cohere, Gemma, OLMo, Llama 4).

Each key has the values (besides null) for which the forward pass is Llama's."""


def plain_attention(seen: Signature) -> bool:
    """Whether every layer has separate q, k, v and o projections between Llama's two norms, and neither q/k norms nor a gate."""
    return (
        seen.attention
        and seen.two_norms
        and not (seen.qk_norm or seen.late_norm or seen.gated or seen.linear or seen.separate)
    )


def dense(seen: Signature) -> bool:
    """Whether every layer has plain attention and a dense gated MLP."""
    return plain_attention(seen) and seen.dense and not (seen.experts or seen.shared or seen.mixtral)


def qwen2_biases(seen: Signature) -> bool:
    """Whether q, k and v have biases and the output has none, as in Qwen2; Llama has all four biases or none."""
    return seen.biases == frozenset("qkv")


def matches(checkpoint: Checkpoint) -> bool:
    """Plain attention and dense MLPs, without Qwen2's biases."""
    seen = signature(checkpoint)
    return dense(seen) and not qwen2_biases(seen)


def refuse_other_arithmetic(config: Config) -> None:
    """Raise UnsupportedError if the config states a computation that Llama does not have, whatever the tensors look like."""
    for key, neutral in NEUTRAL.items():
        value = config.values.get(key)
        if value is not None and value not in neutral:
            raise UnsupportedError(
                f"{config.path}: {key} is {value!r}, which Llama does not have; this checkpoint has Llama's tensors but is "
                "of another family, which is not supported yet"
            )
    ropes = {**config.mapping("rope_parameters"), **config.mapping("rope_scaling")}
    if ropes.get("llama_4_scaling_beta"):
        raise UnsupportedError(
            f"{config.path}: llama_4_scaling_beta is {ropes['llama_4_scaling_beta']!r}, which scales queries by their position; "
            "this is not supported yet"
        )
    no_rope = config.values.get("no_rope_layers")
    if isinstance(no_rope, list) and not all(no_rope):
        raise UnsupportedError(
            f"{config.path}: no_rope_layers turns rope off in some layers, which is not supported yet"
        )


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; its family name is mistral if the config says so."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, BARE)
    refuse_other_arithmetic(config)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        window = config.window(layer_number(prefix))
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm, window)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    if config.kind != "mistral":
        return assemble(checkpoint, inventory, config, "llama", layer)
    model = assemble(checkpoint, inventory, config, "mistral", layer)
    return replace(model, preferred_targets=WINDOWED)


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint of the variant."""
    field_tiny.write(folder, field_tiny.LLAMA[variant], seed)


_AS_LLAMA = Expected(target="llama", rewrites=("rope in interleaved pairs",))
VARIANTS = {
    **dict.fromkeys(field_tiny.LLAMA, _AS_LLAMA),
    "mistral-window": replace(_AS_LLAMA, target="granite_swa"),
}

FAMILY = Family(
    name="llama",
    title="Llama, Mistral",
    model_types=("llama", "mistral", "ministral", "seed_oss", "internlm3", "iquestcoder", "cwm"),
    matches=matches,
    build=build,
    preferred_targets=("llama",),
    variants=VARIANTS,
    tiny=tiny,
)
