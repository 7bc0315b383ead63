"""Granite 3 with experts, in Hugging Face layout (transformers: GraniteMoeForCausalLM)."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.families import llama
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.granite import TINY_SCALES, scaled_model
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature


def matches(checkpoint: Checkpoint) -> bool:
    """Plain attention, and the experts of each layer in `input_linear` and `output_linear`, without a shared one."""
    experts = "model.layers.0.block_sparse_moe.input_linear.weight" in checkpoint.tensors
    shared = "model.layers.0.shared_mlp.input_linear.weight" in checkpoint.tensors
    return experts and not shared and llama.plain_attention(signature(checkpoint))


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    return scaled_model(checkpoint, ClassConfig(checkpoint, FAMILY.model_types, bare("granitemoe")), FAMILY.name)


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint: Llama's tensors with experts in place of the feed-forwards."""
    sizes = {"num_local_experts": tiny_attention.EXPERTS, "num_experts_per_tok": 2}
    config = {**tiny_attention.BASE, "model_type": "granitemoe", **TINY_SCALES, **sizes}
    config["tie_word_embeddings"] = variant == "tied"
    shapes = tiny_attention.shapes(tiny_attention.Variant(config=config))
    shapes = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
    hidden, width, experts = tiny_attention.HIDDEN, tiny_attention.WIDTH, tiny_attention.EXPERTS
    for n in range(tiny_attention.LAYERS):
        prefix = f"model.layers.{n}.block_sparse_moe."
        shapes[f"{prefix}router.layer.weight"] = (experts, hidden)
        shapes[f"{prefix}input_linear.weight"] = (experts, 2 * width, hidden)
        shapes[f"{prefix}output_linear.weight"] = (experts, hidden, width)
    tensors = random_tensors(shapes, seed, gain={**tiny_attention.GAIN, "router": 2.0})
    write_checkpoint(folder, config, tensors)
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="granite-moe",
    title="Granite 3 with experts",
    model_types=("granitemoe",),
    matches=matches,
    build=build,
    preferred_targets=("granitemoe", "llama"),
    variants=dict.fromkeys(("plain", "tied"), Expected(target="granitemoe", rewrites=("rope in interleaved pairs",))),
    tiny=tiny,
)
