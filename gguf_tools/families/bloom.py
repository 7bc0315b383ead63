"""BLOOM in Hugging Face layout (transformers: BloomForCausalLM): ALiBi, and a layer norm of the embeddings.

`query_key_value` has for each head the rows of its q, then its k, then its v. Published files lack the prefix `transformer.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families import hf
from gguf_tools.families.assemble import decoder
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_count
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.families.tying import embedding_and_output
from gguf_tools.model.spec import Attention, Layer, LayerSpec, LayerTensors, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import take_rows

PREFIX, LENGTH = "transformer.", 2048
ALIBI = 8.0


def matches(checkpoint: Checkpoint) -> bool:
    """BLOOM's names of the fused projection and of the norm of the embeddings."""
    names = checkpoint.tensors
    prefix = _prefix(names)
    own = ("word_embeddings_layernorm.weight", "h.0.self_attention.query_key_value.weight")
    return all(f"{prefix}{name}" in names for name in own)


def _prefix(names: Mapping[str, Tensor]) -> str:
    return PREFIX if f"{PREFIX}word_embeddings.weight" in names else ""


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for residuals taken after the norms."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("bloom"))
    key = "apply_residual_connection_post_layernorm"
    if config.flag(key, False):
        raise UnsupportedError(f"{config.path}: {key} is true, which is not supported")
    prefix = _prefix(inventory.tensors)
    embedding, output = embedding_and_output(inventory, config, f"{prefix}word_embeddings.weight", "lm_head.weight")
    hidden = embedding.shape[1]
    norm = Norm(config.number("layer_norm_epsilon"), centred=True, bias=True)
    heads = config.integer("n_head" if "n_head" in config.values else "num_attention_heads")
    if hidden % heads:
        raise CheckpointError(f"{config.path}: {heads} heads do not divide the hidden size {hidden}; correct n_head")
    tensors = {"embedding": embedding, "output": output}
    tensors |= hf.norm(inventory, f"{prefix}word_embeddings_layernorm", norm, "embedding_norm", hidden)
    layers = []
    for n in range(layer_count(inventory, f"{prefix}h.")):
        place = f"{prefix}h.{n}."
        mixer, part = _attention(inventory, f"{place}self_attention.", hidden, heads)
        up, down = "dense_h_to_4h", "dense_4h_to_h"
        ffn, ffn_part = hf.ungated_mlp(inventory, f"{place}mlp.", hidden, "gelu_tanh", up, down)
        part |= ffn_part | hf.norm(inventory, f"{place}input_layernorm", norm, "mixer_norm", hidden)
        part |= hf.norm(inventory, f"{place}post_attention_layernorm", norm, "ffn_norm", hidden)
        layers.append(Layer(LayerSpec(mixer, ffn, norm, norm), part))
    tensors |= hf.norm(inventory, f"{prefix}ln_f", norm, "output_norm", hidden)
    return decoder(
        checkpoint,
        inventory,
        config,
        FAMILY.name,
        tensors,
        layers,
        norm=norm,
        context=_context(config),
        keys=("vocab_size", "hidden_size", "n_layer"),
        fields={"embedding_norm": norm},
    )


def _context(config: ClassConfig) -> int:
    """The length of the texts that the model was trained on, which its config may state as seq_length: ALiBi has no limit."""
    for key in ("max_position_embeddings", "seq_length"):
        if config.values.get(key) is not None:
            return config.integer(key)
    config.assumed("seq_length", LENGTH)
    return LENGTH


def _attention(inventory: Inventory, prefix: str, hidden: int, heads: int) -> tuple[Attention, LayerTensors]:
    """`query_key_value`, (3 · hidden, hidden), and `dense`, with biases."""
    dim = hidden // heads
    part: LayerTensors = {
        "attn.o": inventory.take(f"{prefix}dense.weight", hidden, hidden),
        "attn.o_bias": inventory.take(f"{prefix}dense.bias", hidden),
    }
    both = {"": inventory.take(f"{prefix}query_key_value.weight", 3 * hidden, hidden)}
    both["_bias"] = inventory.take(f"{prefix}query_key_value.bias", 3 * hidden)
    for ending, tensor in both.items():
        for n, name in enumerate("qkv"):
            part[f"attn.{name}{ending}"] = take_rows(tensor, heads, n * dim, dim)
    bias = frozenset("qkvo")
    return Attention(heads=heads, kv_heads=heads, head_dim=dim, rope=None, bias=bias, alibi=ALIBI), part


VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({}, Expected(target="bloom")),
    # A number of heads that is no power of 2 has slopes of its own.
    "six-heads": ({"n_head": 6, "hidden_size": 96, "tie_word_embeddings": False}, Expected(target="bloom")),
    "post-norm": (
        {"apply_residual_connection_post_layernorm": True},
        Expected(refused="apply_residual_connection_post_layernorm is true", oracle=False),
    ),
}
"""Keys of each variant's config.json, and what it shows."""
LAYERS, VOCAB = 3, 288


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint in the published layout."""
    config: dict[str, Any] = {
        "model_type": "bloom",
        "hidden_size": 64,
        "n_head": 4,
        "n_layer": LAYERS,
        "vocab_size": VOCAB,
    }
    config |= {"layer_norm_epsilon": 1e-5, "seq_length": 256, "bos_token_id": 0, "eos_token_id": 1}
    config |= {"tie_word_embeddings": True, **VARIANTS[variant][0]}
    hidden = config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {f"{PREFIX}word_embeddings.weight": (VOCAB, hidden)}
    shapes = {**shapes, **({} if config["tie_word_embeddings"] else {"lm_head.weight": (VOCAB, hidden)})}
    pairs: dict[str, tuple[int, ...]] = {f"{PREFIX}word_embeddings_layernorm": (hidden,), f"{PREFIX}ln_f": (hidden,)}
    for n in range(LAYERS):
        place = f"{PREFIX}h.{n}."
        pairs |= {f"{place}input_layernorm": (hidden,), f"{place}post_attention_layernorm": (hidden,)}
        pairs |= {f"{place}self_attention.query_key_value": (3 * hidden, hidden)}
        pairs |= {f"{place}self_attention.dense": (hidden, hidden)}
        pairs |= {f"{place}mlp.dense_h_to_4h": (4 * hidden, hidden), f"{place}mlp.dense_4h_to_h": (hidden, 4 * hidden)}
    for name, shape in pairs.items():
        shapes = {**shapes, f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    noise = {name.replace("ln_f", "norm_f"): shape for name, shape in shapes.items()}
    tensors = random_tensors(noise, seed, gain={"query_key_value.weight": 1.0})
    write_checkpoint(folder, config, {name: tensors[name.replace("ln_f", "norm_f")] for name in shapes})
    write_tiny_tokenizer(folder, VOCAB)


FAMILY = Family(
    name="bloom",
    title="BLOOM",
    model_types=("bloom",),
    matches=matches,
    build=build,
    preferred_targets=("bloom",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
