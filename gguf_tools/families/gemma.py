"""Gemma 1 in Hugging Face layout (transformers: GemmaForCausalLM): Llama's tensors.

Norm weights are stored minus 1, embeddings are multiplied by √hidden, and the gate is a GELU by its tanh approximation also where
the config calls it "gelu".
"""

from __future__ import annotations

from pathlib import Path

from gguf_tools.families import hf, llama
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.model.spec import Activation, Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import EMBEDDING


def matches(checkpoint: Checkpoint) -> bool:
    """The tensors of Llama."""
    return llama.matches(checkpoint)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("gemma"))
    stated = hf.activation(config)
    activation: Activation = "gelu_tanh" if stated == "gelu" else stated

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden, activation=activation)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    fields = {"embedding_scale": inventory.shape(EMBEDDING)[1] ** 0.5}
    return assemble(checkpoint, inventory, config, FAMILY.name, layer, offset=1.0, fields=fields, swiglu=False)


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    activation = {"plain": "gelu_pytorch_tanh", "legacy": "gelu"}[variant]
    config = {"model_type": "gemma", "hidden_act": activation, "head_dim": 32, "tie_word_embeddings": True}
    tiny_attention.write(folder, tiny_attention.Variant(config=config), seed)


FAMILY = Family(
    name="gemma",
    title="Gemma 1",
    model_types=("gemma",),
    matches=matches,
    build=build,
    preferred_targets=("gemma",),
    variants=dict.fromkeys(("plain", "legacy"), Expected(target="gemma")),
    tiny=tiny,
    by_type=True,
)
