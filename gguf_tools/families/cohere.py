"""Command R and Command R7B in Hugging Face layout (transformers: CohereForCausalLM, Cohere2ForCausalLM).

Mixer and feed-forward read the same normed x in parallel; rope turns interleaved pairs. Cohere 2 has sliding windows, and no
rope in the layers without one.
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
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint


def matches(checkpoint: Checkpoint) -> bool:
    """Feed-forwards with a gate, and in every layer one norm alone, before the attention."""
    names = checkpoint.tensors
    layer = "model.layers.0."
    inside = {name.split(".", 3)[3] for name in names if name.startswith("model.layers.") and name.count(".") > 2}
    gated = f"{layer}mlp.gate_proj.weight" in names and f"{layer}self_attn.o_proj.weight" in names
    # Of every layer: another model that lacks one norm of one layer is incomplete, and not this one.
    norms = {name for name in inside if "norm" in name and "self_attn" not in name}
    return gated and norms == {"input_layernorm.weight"}


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for norms of q and k, which are layer norms with weights of each head."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("cohere"))
    second = config.kind == "cohere2"
    if config.flag("use_qk_norm", False):
        raise UnsupportedError(f"{config.path}: use_qk_norm is true, which is not supported")
    if config.values.get("sliding_window_pattern") not in (None, 4):
        raise UnsupportedError(f"{config.path}: sliding_window_pattern is not 4; give layer_types in its place")
    whole = Norm(config.number("layer_norm_eps"), centred=True)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        window = config.window(layer_number(prefix)) if second else None
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None, window)
        rope = replace(mixer.rope, pairs="interleaved") if mixer.rope and (window or not second) else None
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(replace(mixer, rope=rope), ffn, norm, None, parallel=True), part | ffn_part)

    fields = {"logit_scale": config.number("logit_scale")}
    return assemble(checkpoint, inventory, config, FAMILY.name, layer, norm=whole, fields=fields)


_UNTIED = ("logit scale folded into the final norm", "rope in pairs half a head apart")
_FIRST: Mapping[str, Any] = {"model_type": "cohere", "rope_theta": 500000.0}
_SECOND: Mapping[str, Any] = {"model_type": "cohere2", "sliding_window": 8, "num_hidden_layers": 5}
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({**_FIRST}, Expected(target="command-r")),
    "biases": ({**_FIRST, "attention_bias": True}, Expected(refused="a bias on the attention output")),
    "second": ({**_SECOND}, Expected(target="cohere2")),
    "second-full": (
        {**_SECOND, "layer_types": ["full_attention"] * 5},
        Expected(refused="a model without rope in any layer"),
    ),
    "untied": ({**_FIRST, "tie_word_embeddings": False}, Expected(target="stablelm", rewrites=_UNTIED)),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    stated = {"layer_norm_eps": 1e-5, "logit_scale": 0.25, "tie_word_embeddings": True}
    config = {**tiny_attention.BASE, **stated, **VARIANTS[variant][0]}
    bias = "qkvo" if config.get("attention_bias") else ""
    made = tiny_attention.Variant(config=config, bias=bias, layers=config["num_hidden_layers"])
    shapes = {n: shape for n, shape in tiny_attention.shapes(made).items() if "post_attention_layernorm" not in n}
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="cohere",
    title="Command R, Command R7B (Cohere 1 and 2)",
    model_types=("cohere", "cohere2"),
    matches=matches,
    build=build,
    preferred_targets=("command-r", "cohere2"),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
