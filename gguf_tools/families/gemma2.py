"""Gemma 2 and the text part of Gemma 3 in Hugging Face layout (transformers: Gemma2ForCausalLM, Gemma3ForCausalLM).

Norms before and after mixer and feed-forward, whose weights are stored minus 1; embeddings times √hidden; a sliding window in
most layers. Gemma 2 caps attention scores and logits. Gemma 3 has norms of q and k, and another rope in the layers with a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import UnsupportedError
from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.hf_rope import rope_of_kind
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import EMBEDDING

NORMS = {
    "mixer_norm": "input_layernorm",
    "mixer_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}


def matches(checkpoint: Checkpoint) -> bool:
    """Four norms a layer, around a feed-forward with a gate, by Gemma's names."""
    names = checkpoint.tensors
    layer = "model.layers.0."
    marks = [*(f"{layer}{name}.weight" for name in NORMS.values()), f"{layer}mlp.gate_proj.weight"]
    return all(name in names for name in marks) and f"{layer}self_attn.q_proj.weight" in names


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    third = "model.layers.0.self_attn.q_norm.weight" in checkpoint.tensors
    rules = bare("gemma3_text" if third else "gemma2")
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, rules)
    if config.values.get("sliding_window_pattern") not in (None, 6) or (third and config.kind == "gemma2"):
        raise UnsupportedError(f"{config.path}: sliding_window_pattern is not 6; give layer_types in its place")
    activation, scale = hf.activation(config, "hidden_activation"), config.positive("query_pre_attn_scalar") ** -0.5
    caps = {key: _cap(config, key) for key in ("attn_logit_softcapping", "final_logit_softcapping")}

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        """The parts of one layer, between its four norms."""
        window = config.window(layer_number(prefix))

        def turned(head_dim: int) -> Rope:
            return rope_of_kind(
                config, head_dim, local=window is not None, local_key="rope_local_base_freq", local_theta=1e4
            )

        rope_of = turned if third else None
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm, window, rope_of=rope_of)
        # transformers' Gemma 3 does not heed the cap on attention scores.
        cap = None if third else caps["attn_logit_softcapping"]
        mixer = replace(mixer, scale=scale, softcap=cap)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden, activation=activation)
        config.expect("intermediate_size", ffn.width)
        spec = LayerSpec(mixer, ffn, norm, norm, mixer_post_norm=norm, ffn_post_norm=norm)
        return Layer(spec, part | ffn_part)

    fields = {
        "embedding_scale": inventory.shape(EMBEDDING)[1] ** 0.5,
        "logit_softcap": caps["final_logit_softcapping"],
    }
    return assemble(
        checkpoint, inventory, config, FAMILY.name, layer, offset=1.0, names=NORMS, fields=fields, swiglu=False
    )


def _cap(config: ClassConfig, key: str) -> float | None:
    config.fill(key)
    return None if config.values.get(key) is None else config.number(key)


_SECOND: Mapping[str, Any] = {
    "model_type": "gemma2",
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 6.0,
    "query_pre_attn_scalar": 24,
}
_THIRD: Mapping[str, Any] = {
    "model_type": "gemma3_text",
    "query_pre_attn_scalar": 32,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "final_logit_softcapping": None,
}
_LINEAR = {"rope_type": "linear", "factor": 8.0}
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "second": (_SECOND, Expected(target="gemma2")),
    "second-full": ({**_SECOND, "layer_types": ["full_attention"] * 3}, Expected(target="gemma2")),
    "third": ({**_THIRD, "rope_scaling": _LINEAR}, Expected(target="gemma3")),
    "third-untied": (
        {**_THIRD, "tie_word_embeddings": False, "query_pre_attn_scalar": 20, "final_logit_softcapping": 6.0},
        Expected(target="gemma3"),
    ),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    stated = {
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 32,
        "sliding_window": 8,
        "tie_word_embeddings": True,
    }
    config = {**tiny_attention.BASE, **stated, **VARIANTS[variant][0]}
    config = {key: value for key, value in config.items() if key != "hidden_act"}
    shapes = tiny_attention.shapes(tiny_attention.Variant(config=config, qk_norm=variant.startswith("third")))
    for n in range(tiny_attention.LAYERS):
        for name in ("pre", "post"):
            shapes[f"model.layers.{n}.{name}_feedforward_layernorm.weight"] = (tiny_attention.HIDDEN,)
    tensors = random_tensors(shapes, seed, norm_centre=0.2, gain=tiny_attention.GAIN)
    write_checkpoint(folder, config, tensors)
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="gemma2",
    title="Gemma 2, Gemma 3 (text)",
    model_types=("gemma2", "gemma3_text"),
    matches=matches,
    build=build,
    preferred_targets=("gemma2", "gemma3"),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
