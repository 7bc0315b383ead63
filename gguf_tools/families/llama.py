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
from gguf_tools.families.reading import Config, Inventory
from gguf_tools.families.tiny import attention as field_tiny
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import Signature, signature

WINDOWED = ("llama", "granite_swa")
"""Preferred targets of models whose attention may be limited to a window, which `llama` cannot state."""
MISTRAL_WINDOW = 4096
"""transformers' default where a Mistral config does not say."""
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
NEIGHBOURS = ("ernie4_5", "helium")
"""Values of model_type with Llama's tensors and keys, whose rope turns neighbouring dimensions."""
ALIKE = ("llama", "mistral", "ministral", "mixtral", "qwen2", "qwen2_moe", "seed_oss")
"""Values of model_type that compute what Llama does, but for biases, experts and windows, which are seen otherwise."""


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
    kind = config.values.get("model_type")
    if kind in NEIGHBOURS:
        raise UnsupportedError(
            f"{config.path}: model_type is {kind!r}, whose rope turns neighbouring dimensions, which no tensor shows; "
            "this family is not supported yet"
        )
    if kind is not None and kind not in ALIKE:
        config.note(f"config.json calls the model {kind!r}; it has Llama's tensors and is computed as Llama is")
    ropes = {**config.mapping("rope_scaling"), **config.mapping("rope_parameters")}
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
    inventory, config = Inventory(checkpoint), Config(checkpoint)
    refuse_other_arithmetic(config)
    kind = config.values.get("model_type")
    if kind == "mistral" and "sliding_window" not in config.values:
        config.values = {**config.values, "sliding_window": MISTRAL_WINDOW}
    elif kind == "llama" and config.values.get("sliding_window"):
        config.note("config.json states sliding_window, which Llama does not have: it is left aside")

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        window = hf.sliding_window(config, prefix, used=kind != "llama")
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm, window)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    if kind != "mistral":
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
    matches=matches,
    build=build,
    preferred_targets=("llama",),
    variants=VARIANTS,
    tiny=tiny,
)
