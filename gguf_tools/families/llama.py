"""Llama's layout in Hugging Face transformers (LlamaForCausalLM), and Mistral's, whose tensors are the same.

Only the config tells the two apart: Mistral limits attention to a sliding window where `sliding_window` is a number. Other
models have these tensors too and compute something else with them; what the config says of that is refused by name.
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
"""Preferred targets of models whose attention may be limited to a window, which `llama` cannot state."""
BARE = bare("llama", defaults={"use_sliding_window": True}, windows=Windows(switch=True, listed=True))
"""Of a config that names no class, a sliding window is Mistral's."""
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
"""Keys of models with Llama's tensors and another forward pass (Granite, MiniCPM, Cohere, Gemma, OLMo, Llama 4), and the
values besides null with which it is the same."""


def plain_attention(seen: Signature) -> bool:
    """Separate q, k, v and o in every layer, without norms of q and k and without a gate."""
    return seen.attention and not (seen.qk_norm or seen.gated or seen.linear or seen.separate)


def dense(seen: Signature) -> bool:
    """Plain attention and gated feed-forwards alone."""
    return plain_attention(seen) and seen.dense and not (seen.experts or seen.shared or seen.mixtral)


def qwen2_biases(seen: Signature) -> bool:
    """Biases on queries, keys and values and none on the output: Qwen2's mark, for Llama has all four or none."""
    return seen.biases == frozenset("qkv")


def matches(checkpoint: Checkpoint) -> bool:
    """Plain attention, dense feed-forwards, and not Qwen2's biases."""
    seen = signature(checkpoint)
    return dense(seen) and not qwen2_biases(seen)


def refuse_other_arithmetic(config: Config) -> None:
    """UnsupportedError where the config states a computation that Llama's tensors do not show and Llama does not have."""
    for key, neutral in NEUTRAL.items():
        value = config.values.get(key)
        if value is not None and value not in neutral:
            raise UnsupportedError(
                f"{config.path}: {key} is {value!r}, which a model with Llama's tensors does not have in tinyq; "
                "this checkpoint is of another family, which is not supported yet"
            )
    ropes = {**config.mapping("rope_parameters"), **config.mapping("rope_scaling")}
    if ropes.get("llama_4_scaling_beta"):
        raise UnsupportedError(
            f"{config.path}: llama_4_scaling_beta is {ropes['llama_4_scaling_beta']!r}, which scales queries by their position; "
            "that is not supported yet"
        )
    no_rope = config.values.get("no_rope_layers")
    if isinstance(no_rope, list) and not all(no_rope):
        raise UnsupportedError(
            f"{config.path}: no_rope_layers leaves rope out of some layers, which is not supported yet"
        )


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; the family is called mistral where the config does so."""
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
    """A random small checkpoint of one of the variants."""
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
