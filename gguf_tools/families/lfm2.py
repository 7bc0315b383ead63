"""LFM2 and LFM2.5 in Hugging Face layout (transformers: Lfm2ForCausalLM): gated short convolutions and attention.

The norm before the output is named `embedding_norm`. Published configs state the tying of the embedding as `tie_embedding`,
and the layers with attention as `full_attn_idxs`; the kinds of the layers follow from their tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf
from gguf_tools.families.assemble import finished
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.hf_rope import rope
from gguf_tools.families.reading import Inventory, layer_count, layer_number
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.attention import CONTEXT, HEADS, HIDDEN, KV_HEADS, VOCAB, WIDTH, Shapes
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import (
    Attention,
    FeedForward,
    GatedMLP,
    Layer,
    LayerSpec,
    LayerTensors,
    Mixer,
    Model,
    ModelSpec,
    Norm,
    ShortConv,
)
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import EMBEDDING, OUTPUT, TIE
from gguf_tools.tensors.views import Reshaped

MATRICES = {"gate": "w1", "up": "w3", "down": "w2"}
FeedForwardReader = Callable[[str, int], tuple[FeedForward, LayerTensors]]
"""(prefix of the feed-forward's tensors, hidden size) → the feed-forward and its tensors by role."""


def matches(checkpoint: Checkpoint) -> bool:
    """`operator_norm` before each mixer, a dense feed-forward of w1, w2 and w3, and no router."""
    names = ("model.layers.0.operator_norm.weight", "model.layers.0.feed_forward.w1.weight")
    routed = any(name.endswith(".feed_forward.gate.weight") for name in checkpoint.tensors)
    return all(name in checkpoint.tensors for name in names) and not routed


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model. Raises CheckpointError for missing, leftover or misshapen tensors."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("lfm2"))
    return decoder(checkpoint, inventory, config, FAMILY.name, lambda prefix, hidden: dense(inventory, prefix, hidden))


def decoder(
    checkpoint: Checkpoint, inventory: Inventory, config: ClassConfig, family: str, feed_forward: FeedForwardReader
) -> Model:
    """A model of short convolutions and attention, whose feed-forwards `feed_forward` reads."""
    if "tie_embedding" in config.values:
        # transformers uses the old key in place of its own.
        config.values = {**config.values, TIE: config.values["tie_embedding"]}
    tensors, tied = hf.embeddings(inventory, config)
    vocab, hidden = tensors["embedding"].shape
    norm = Norm(config.number("norm_eps"))
    layers = []
    for n in range(layer_count(inventory, "model.layers.")):
        prefix = f"model.layers.{n}."
        mixer, part = _mixer(inventory, config, prefix, hidden, norm)
        ffn, ffn_part = feed_forward(f"{prefix}feed_forward.", hidden)
        norms = {
            role: inventory.take(f"{prefix}{name}.weight", hidden)
            for role, name in (("mixer_norm", "operator_norm"), ("ffn_norm", "ffn_norm"))
        }
        layers.append(Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part | norms))
    tensors["output_norm"] = inventory.take("model.embedding_norm.weight", hidden)
    inventory.finish()
    config.expect("num_hidden_layers", len(layers))
    spec = ModelSpec(
        vocab_size=vocab,
        hidden=hidden,
        context_length=config.integer("max_position_embeddings"),
        layers=tuple(layer.spec for layer in layers),
        output_norm=norm,
        tied=tied,
    )
    return finished(checkpoint, config, family, spec, tensors, layers)


def _mixer(
    inventory: Inventory, config: ClassConfig, prefix: str, hidden: int, norm: Norm
) -> tuple[Mixer, LayerTensors]:
    """A layer's attention or short convolution, whichever its tensors are."""
    config.window(layer_number(prefix))
    if f"{prefix}conv.in_proj.weight" in inventory:
        hf.expect_kind(config, prefix, "conv")
        return _short_conv(inventory, config, f"{prefix}conv.", hidden)
    hf.expect_kind(config, prefix, "full_attention")
    return _attention(inventory, config, f"{prefix}self_attn.", hidden, norm)


def _short_conv(inventory: Inventory, config: ClassConfig, prefix: str, hidden: int) -> tuple[ShortConv, LayerTensors]:
    """`in_proj` (3 · hidden, hidden), `conv` (hidden, 1, kernel) and `out_proj` (hidden, hidden), all with biases or none."""
    kernel = inventory.shape(f"{prefix}conv.weight", 3)[2]
    config.expect("conv_L_cache", kernel)
    spec = ShortConv(kernel, f"{prefix}conv.bias" in inventory)
    config.expect("conv_bias", spec.bias)
    weights = inventory.take(f"{prefix}conv.weight", hidden, 1, kernel)
    part: LayerTensors = {
        "conv.in": inventory.take(f"{prefix}in_proj.weight", 3 * hidden, hidden),
        "conv.kernel": Reshaped(weights, (hidden, kernel)),
        "conv.o": inventory.take(f"{prefix}out_proj.weight", hidden, hidden),
    }
    if spec.bias:
        for role, name in (("conv.in", "in_proj"), ("conv.kernel", "conv"), ("conv.o", "out_proj")):
            part[f"{role}_bias"] = inventory.take(f"{prefix}{name}.bias", part[role].shape[0])
    return spec, part


def _attention(
    inventory: Inventory, config: ClassConfig, prefix: str, hidden: int, norm: Norm
) -> tuple[Attention, LayerTensors]:
    """Attention with a norm on each head of q and k; the length of the norms' weights is the size of a head."""
    dim = inventory.shape(f"{prefix}q_layernorm.weight", 1)[0]
    wide, keys = (inventory.shape(f"{prefix}{name}_proj.weight")[0] for name in "qk")
    if wide % dim or keys % dim or (wide // dim) % (keys // dim):
        raise CheckpointError(
            f"{inventory.path}: {prefix}q_proj.weight has {wide} rows and k_proj {keys}, which do not divide into heads of {dim} "
            "(the length of q_layernorm) in equal groups; save the checkpoint again"
        )
    heads, kv_heads = wide // dim, keys // dim
    config.expect("num_attention_heads", heads)
    config.expect("num_key_value_heads", kv_heads)
    part: LayerTensors = {
        "attn.q": inventory.take(f"{prefix}q_proj.weight", wide, hidden),
        "attn.k": inventory.take(f"{prefix}k_proj.weight", keys, hidden),
        "attn.v": inventory.take(f"{prefix}v_proj.weight", keys, hidden),
        "attn.o": inventory.take(f"{prefix}out_proj.weight", hidden, wide),
        "attn.q_norm": inventory.take(f"{prefix}q_layernorm.weight", dim),
        "attn.k_norm": inventory.take(f"{prefix}k_layernorm.weight", dim),
    }
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope(config, dim), qk_norm=norm), part


def dense(inventory: Inventory, prefix: str, hidden: int) -> tuple[GatedMLP, LayerTensors]:
    """SwiGLU of `w1` (gate) and `w3` (up), (width, hidden), and `w2` (down), (hidden, width)."""
    return hf.gated_mlp(inventory, prefix, hidden, names=MATRICES)


KERNEL = 3
BASE: Mapping[str, Any] = {
    "model_type": "lfm2",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "block_auto_adjust_ff_dim": False,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "conv_L_cache": KERNEL,
    "conv_bias": False,
    "tie_word_embeddings": True,
}
_PLAIN = Expected(target="lfm2")
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any], Expected]] = {
    "plain": ("CCAC", {}, _PLAIN),
    "untied": ("CA", {"tie_embedding": False, "conv_L_cache": 4, "rope_scaling": tiny_attention.YARN}, _PLAIN),
    "published-keys": ("ACC", {"layer_types": None, "full_attn_idxs": [0], "tie_embedding": True}, _PLAIN),
    "full-only": ("AA", {}, replace(_PLAIN, target="qwen3")),
    "conv-only": ("CC", {}, Expected(refused="lfm2 does not support a model without full attention layers")),
    "conv-bias": ("CA", {"conv_bias": True}, Expected(refused="lfm2 does not support biases in the short convolution")),
}
"""For each variant: its layers (C convolution, A attention), more keys of its config.json, and what converting it must give."""


def shapes(layers: str, config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of all tensors of a small checkpoint with these layers."""
    dim = HIDDEN // HEADS
    found: Shapes = {EMBEDDING: (VOCAB, HIDDEN), "model.embedding_norm.weight": (HIDDEN,)}
    found |= {} if config.get("tie_embedding", True) else {OUTPUT: (VOCAB, HIDDEN)}
    for n, letter in enumerate(layers):
        own: Shapes = {"operator_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,)}
        if letter == "A":
            rows = {"q": HIDDEN, "k": KV_HEADS * dim, "v": KV_HEADS * dim, "out": HIDDEN}
            own |= {f"self_attn.{name}_proj.weight": (size, HIDDEN) for name, size in rows.items()}
            own |= {f"self_attn.{name}_layernorm.weight": (dim,) for name in "qk"}
        else:
            own |= {"conv.in_proj.weight": (3 * HIDDEN, HIDDEN), "conv.out_proj.weight": (HIDDEN, HIDDEN)}
            own["conv.conv.weight"] = (HIDDEN, 1, config["conv_L_cache"])
            if config["conv_bias"]:
                own |= {f"{name[:-6]}bias": shape[:1] for name, shape in own.items() if name.startswith("conv.")}
        own |= {f"feed_forward.{name}.weight": (WIDTH, HIDDEN) for name in ("w1", "w3")}
        own["feed_forward.w2.weight"] = (HIDDEN, WIDTH)
        found |= {f"model.layers.{n}.{name}": shape for name, shape in own.items()}
    return found


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint with a tokenizer."""
    layers, changes, _ = VARIANTS[variant]
    kinds = ["full_attention" if letter == "A" else "conv" for letter in layers]
    config = {**BASE, "num_hidden_layers": len(layers), "layer_types": kinds, **changes}
    config = {key: value for key, value in config.items() if value is not None}
    tensors = random_tensors(shapes(layers, config), seed, gain=tiny_attention.GAIN)
    write_checkpoint(folder, config, tensors)
    write_tiny_tokenizer(folder, VOCAB)


FAMILY = Family(
    name="lfm2",
    title="LFM2, LFM2.5",
    model_types=("lfm2",),
    matches=matches,
    build=build,
    preferred_targets=("lfm2",),
    variants={name: expected for name, (_, _, expected) in VARIANTS.items()},
    tiny=tiny,
)
