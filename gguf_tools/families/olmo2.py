"""OLMo 2 and 3 in Hugging Face layout (transformers: Olmo2ForCausalLM, Olmo3ForCausalLM).

Norms after mixer and feed-forward and none before; one norm of q and of k over all heads. OLMo 3 has sliding windows, and rope
scaling in the layers without one alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

NORMS = {"mixer_post_norm": "post_attention_layernorm", "ffn_post_norm": "post_feedforward_layernorm"}


def matches(checkpoint: Checkpoint) -> bool:
    """Norms of q and k over all heads, and after mixer and feed-forward, none before."""
    names = checkpoint.tensors
    layer = "model.layers.0."
    norm, output = names.get(f"{layer}self_attn.q_norm.weight"), names.get(f"{layer}self_attn.o_proj.weight")
    whole = norm is not None and output is not None and norm.shape == output.shape[1:]
    return (
        whole
        and f"{layer}post_feedforward_layernorm.weight" in names
        and f"{layer}input_layernorm.weight" not in names
        and f"{layer}pre_feedforward_layernorm.weight" not in names
    )


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("olmo2"))

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        """The parts of one layer, before its two norms."""
        window = config.window(layer_number(prefix))

        def turned(head_dim: int) -> Rope:
            return rope_of_kind(config, head_dim, local=window is not None, local_key=None, local_theta=5e5)

        rope_of = turned if config.kind == "olmo3" else None
        place = f"{prefix}self_attn."
        mixer, part = hf.attention(inventory, config, place, hidden, norm, window, whole_norm=True, rope_of=rope_of)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        spec = LayerSpec(mixer, ffn, None, None, mixer_post_norm=norm, ffn_post_norm=norm)
        return Layer(spec, part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer, names=NORMS)


_THIRD: Mapping[str, Any] = {
    "model_type": "olmo3",
    "sliding_window": 8,
    "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"model_type": "olmo2"}, Expected(target="olmo2")),
    "tied": (
        {"model_type": "olmo2", "tie_word_embeddings": True},
        Expected(target="olmo2", rewrites=("output written out",)),
    ),
    "third": (_THIRD, Expected(target="olmo2")),
    "two-bases": ({**_THIRD, "rope_theta": 10000.0}, Expected(refused="layers that differ in base of rope")),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    config = {**tiny_attention.BASE, "pad_token_id": 0, "eos_token_id": 1, **VARIANTS[variant][0]}
    hidden, heads, keys = tiny_attention.HIDDEN, tiny_attention.HEADS, tiny_attention.KV_HEADS
    shapes = {
        name.replace("input_layernorm", "post_feedforward_layernorm"): shape
        for name, shape in tiny_attention.shapes(tiny_attention.Variant(config=config)).items()
    }
    for n in range(tiny_attention.LAYERS):
        shapes[f"model.layers.{n}.self_attn.q_norm.weight"] = (hidden,)
        shapes[f"model.layers.{n}.self_attn.k_norm.weight"] = (hidden // heads * keys,)
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="olmo2",
    title="OLMo 2, OLMo 3",
    model_types=("olmo2", "olmo3"),
    matches=matches,
    build=build,
    preferred_targets=("olmo2",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
